from __future__ import annotations

import pytest
from rich.console import Console

from multiflow.cli import console
from multiflow.cli.console import step_progress


class Clock:
    """A clock that the test winds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(console.time, "monotonic", lambda: self.now)


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


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = lambda **options: Console(**options, force_terminal=True, width=100)  # noqa: E731
    monkeypatch.setattr(console, "Console", terminal)
    with step_progress() as step:
        step("calibrate", 1, 2)
        step("calibrate", 2, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "calibrate" in err
    assert "2/2" in err
    assert "batches/s, ETA" in err
