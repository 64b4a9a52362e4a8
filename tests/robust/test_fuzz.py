"""The short form of the fuzz runner, and everything that it or a person ever found."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests import processes
from tests.robust import fuzz
from tests.robust.fuzz import FINDINGS, Target, outcome, targets


def test_damaged_files_end_in_a_value_or_in_a_sentence(tmp_path: Path) -> None:
    said = processes.forked(fuzz.main, ["--worker", "--cases", "2000", "--seconds", "60", "--findings", str(tmp_path)])
    assert said.startswith("DONE "), said[-4_000:]


@pytest.mark.parametrize("folder", sorted(FINDINGS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
@pytest.mark.filterwarnings("ignore")
def test_what_was_found_stays_mended(folder: Path) -> None:
    target = targets()[folder.parent.name]
    assert outcome(target, folder) is None


def test_a_finding_is_kept_and_told(tmp_path: Path) -> None:
    """The runner itself: a reader that fails is found, its folder is kept, and the exit code says so."""
    said = processes.forked(find_what_fails, tmp_path)
    assert "KeyError" in said
    assert list(tmp_path.glob("a/*/a.txt"))


def find_what_fails(findings: Path) -> None:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "a.txt").write_text("whole")

    def read(folder: Path) -> None:
        text = (folder / "a.txt").read_bytes()
        if text != b"whole":
            raise KeyError(len(text))

    fuzz.targets = lambda: {"a": Target("a", make, read)}  # type: ignore[assignment]
    options = ["--worker", "--cases", "5", "--seconds", "20", "--targets", "a", "--findings", str(findings)]
    raise SystemExit(fuzz.main(options))


def test_a_reader_that_waits_is_found_and_one_that_is_stopped_meanwhile_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)  # times WAITING is how long a reader may wait
    wait = Target("waits", lambda folder: None, lambda folder: time.sleep(2))
    assert (outcome(wait, tmp_path) or "").startswith("longer than")

    def stop(folder: Path) -> None:
        command = f"kill -STOP {os.getpid()}; sleep 1; kill -CONT {os.getpid()}"
        assert processes.run("sh", "-c", command).returncode == 0

    assert outcome(Target("stopped", lambda folder: None, stop), tmp_path) is None


def test_who_ended_a_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    worker = tmp_path / "worker"
    monkeypatch.setattr(sys, "executable", str(worker))
    monkeypatch.setattr(fuzz, "WAITING", 0.15)
    ends = {"kill -9 $$": "killed by another", "sleep 60": "killed by this runner after 3.0 s without a case"}
    for end, said in ends.items():
        worker.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\necho 0 a: bits >&2\n{end}\n')
        worker.chmod(0o755)
        assert fuzz.main(["--cases", "1", "--findings", str(tmp_path)]) == 1
        told = capfd.readouterr().out
        assert said in told
    assert "MB the most that a process held" in told
    words = (tmp_path / "words").read_text().split()
    assert words[:3] == ["-m", "tests.robust.fuzz", "--worker"]
    assert words[words.index("--cases") :][:2] == ["--cases", "1"]
