from __future__ import annotations

import pytest
from rich.text import Text

from multiflow.cli.console import megabytes, percent, say, show, table


def test_numbers_are_aligned_to_the_right_and_words_to_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    show(table("title", ["name", "share", "size"], [("a", percent(0.5), "1"), ("long name", percent(1), "1,000")]))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "title"
    assert "a            50.00 %       1" in lines
    assert "long name   100.00 %   1,000" in lines


def test_a_long_title_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    title = "runs/prune-multiflow-00000000/mask-0.63.safetensors " * 5
    show(table(title, ["n"], [(1,)]))
    assert capsys.readouterr().out.startswith(title)


def test_wide_tables_and_long_lines_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    name, line = "layer." * 20, "word " * 100
    show(table("", ["layer", "n"], [(name, 3)]), line)
    out = capsys.readouterr().out
    assert name in out
    assert line in out


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show(table("", ["[b]x"], [("[red]y",), (Text("z"),)]), "[bold]w")
    out = capsys.readouterr().out
    assert "[red]y" in out
    assert "[bold]w" in out


def test_say_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "multiflow: hello\n")


def test_sizes() -> None:
    assert [megabytes(n) for n in (999, 24_500, 99_999, 100_000, 23_003_136)] == [
        "1.0 kB",
        "24.5 kB",
        "100.0 kB",
        "0.1 MB",
        "23.0 MB",
    ]
