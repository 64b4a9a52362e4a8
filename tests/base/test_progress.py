from __future__ import annotations

import io

from rich.console import Console

from multiflow.base.progress import Progress, console_progress, paced
from multiflow.base.steps import clock


def test_durations():
    assert [clock(s) for s in (None, 0, 59.6, 61, 3671)] == ["-:--", "0:00", "1:00", "1:01", "1:01:11"]


def test_plain_lines_come_now_and_then_and_at_the_end():
    out = io.StringIO()
    with console_progress(Console(file=out, width=20), every=1e9) as progress:
        for step in range(1, 6):
            progress(
                Progress("joint", step, 5, rate=12.3, eta=61.0 * (5 - step), metrics={"loss": 1.23456, "lr": 1e-3})
            )
    assert out.getvalue().splitlines() == [
        "joint 1/5 | 12 samples/s, ETA 4:04 | loss 1.23 lr 0.001",
        "joint 5/5 | 12 samples/s, ETA 0:00 | loss 1.23 lr 0.001",
    ]


def test_without_figures_a_line_ends_with_the_time_left():
    assert str(Progress("evaluate", 3, 4, 2.0, 0.5)) == "evaluate 3/4 | 2 samples/s, ETA 0:00"


def test_the_pace_of_a_task_is_reported(monkeypatch):
    now = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr("multiflow.base.progress.time.monotonic", lambda: next(now))
    seen = []
    step = paced("evaluate", seen.append)
    step(8, 20)
    step(20, 20)
    assert seen == [Progress("evaluate", 8, 20, 4.0, 3.0), Progress("evaluate", 20, 20, 5.0, 0.0)]


def test_a_terminal_gets_one_bar_a_stage():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, color_system=None)
    with console_progress(console) as progress:
        progress(Progress("vision", 2, 2, rate=80, eta=0, metrics={"loss": 2.5}))
        progress(Progress("joint", 1, 4, rate=40, eta=90, metrics={}))
    assert "vision" in out.getvalue()
    assert "2/2" in out.getvalue()
    assert "80 samples/s, ETA 0:00, loss 2.500" in out.getvalue()
    assert "1/4" in out.getvalue()
    assert "40 samples/s, ETA 1:30" in out.getvalue()
