"""How many of our files one reads to follow a pruning; `python -m tests.tracing` prints which."""

from __future__ import annotations

from pathlib import Path

from tests.tracing import entered_by_command, entered_by_pruning_a_module, entered_by_pruning_xvlm, entered_files


def test_python_enters_few_files() -> None:
    assert len(entered_by_pruning_a_module()) <= 25
    assert len(entered_by_pruning_xvlm()) <= 25  # three of them are the model's own


def test_the_command_line_enters_few_files(tmp_path: Path) -> None:
    assert len(entered_by_command(tmp_path)) <= 50


def test_imports_do_not_count() -> None:
    with entered_files() as files:
        from multiflow.base.types import parse_pattern

        parse_pattern("2:4")
    assert files == {"base/types.py"}
