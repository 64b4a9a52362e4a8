from __future__ import annotations

import sys
import types

import pytest
import torch

import multiflow as mf
from multiflow.base import steps
from multiflow.base.steps import step_progress, watched


class Clock:
    """A clock that the test winds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(steps.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_plain_lines_with_rate_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with step_progress() as step:
        for done in range(1, 41):
            clock.now += 1.0
            step("calibrate", done, 40)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "calibrate 1/40 batches, 1 batches/s, ETA 0:39",
        "calibrate 11/40 batches, 1 batches/s, ETA 0:29",
        "calibrate 21/40 batches, 1 batches/s, ETA 0:19",
        "calibrate 31/40 batches, 1 batches/s, ETA 0:09",
        "calibrate 40/40 batches, 1 batches/s, ETA 0:00",
    ]


def test_what_an_earlier_run_had_done_does_not_count(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with step_progress() as step:
        clock.now += 2.0
        step("calibrate", 91, 100)
    assert capsys.readouterr().err == "calibrate 91/100 batches, 0.5 batches/s, ETA 0:18\n"


def test_each_stage_has_its_own_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with step_progress() as step:
        clock.now += 10.0
        step("calibrate", 1, 1)
        clock.now += 0.5
        step("select", 1, 1)
        clock.now += 1.0
        step("something", 3, None)
    assert capsys.readouterr().err.splitlines() == [
        "calibrate 1/1 batches, 0.1 batches/s, ETA 0:00",
        "select 1/1 layers, 2 layers/s, ETA 0:00",
    ]


def test_a_count_that_goes_back_begins_anew(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with step_progress() as step:
        for done in (6, 1, 3, 1):
            clock.now += 10.0
            step("calibrate", done, None)
    assert capsys.readouterr().err.splitlines() == [
        "calibrate 6 batches, 0.1 batches/s, ETA -:--",
        "calibrate 1 batches, 0.1 batches/s, ETA -:--",
        "calibrate 3 batches, 0.15 batches/s, ETA -:--",
        "calibrate 1 batches, 0.1 batches/s, ETA -:--",
    ]


def test_fast_rates_are_plain_numbers(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with step_progress() as step:
        step("select", 1, 1510)
        clock.now += 1.0
        step("select", 1510, 1510)
    assert capsys.readouterr().err.splitlines()[-1] == "select 1510/1510 layers, 1,510 layers/s, ETA 0:00"


def test_an_unknown_total_is_left_out(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with step_progress() as step:
        clock.now += 1.0
        step("calibrate", 1, None)
    assert capsys.readouterr().err == "calibrate 1 batches, 1 batches/s, ETA -:--\n"


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_terminal(monkeypatch)
    with step_progress() as step:
        step("calibrate", 1, 2)
        step("calibrate", 2, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "calibrate" in err
    assert "2/2" in err
    assert "batches/s, ETA" in err


@pytest.fixture
def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))


def prune(model: torch.nn.Module, **options: object) -> mf.Result:
    adapter = mf.Adapter(groups={"all": ".*"}, forward=lambda model, batch: model(batch))
    return mf.prune(model, "wanda", 0.5, [torch.ones(2, 4)], adapter=adapter, **options)  # type: ignore[arg-type]


def test_python_shows_bars_on_a_terminal_and_nothing_elsewhere(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(model)
    assert capsys.readouterr() == ("", "")
    on_terminal(monkeypatch)
    prune(model)
    out, err = capsys.readouterr()
    assert out == ""
    assert "calibrate" in err
    assert "select" in err
    prune(model, progress=False)
    monkeypatch.setenv("MULTIFLOW_PROGRESS", "0")
    prune(model)
    assert capsys.readouterr() == ("", "")


def test_a_callback_of_the_users_own_is_called_and_nothing_shown(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_terminal(monkeypatch)
    seen: list[str] = []
    prune(model, progress=lambda what, done, total: seen.append(what))
    assert {*seen} == {"calibrate", "select"}
    assert capsys.readouterr().err == ""


def test_what_works_inside_of_another_shows_no_bars_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)

    @watched
    def inner(*, progress: steps.Watch = None) -> bool:
        return bool(progress)

    @watched
    def outer(*, progress: steps.Watch = None) -> tuple[bool, bool]:
        return bool(progress), inner()

    assert outer() == (True, False)
    with step_progress():
        assert inner() is False
    assert inner() is True


def test_a_notebook_has_a_bar_a_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))

    @watched
    def work(*, progress: steps.Watch = None) -> None:
        assert progress
        for done in (1, 2):
            progress("calibrate", done, 2)
        progress("select", 1, 3)

    work()
    said = capsys.readouterr().err.split("\r")
    assert any("calibrate" in line and "2/2" in line for line in said)
    assert any("select" in line and "1/3" in line for line in said)
