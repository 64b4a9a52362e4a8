"""The short form of the fuzz runner, and everything that it or a person ever found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import processes
from tests.robust.fuzz import FINDINGS, outcome, targets


def test_damaged_files_end_in_a_value_or_in_a_sentence(tmp_path: Path) -> None:
    limits = ("--cases", 500, "--seconds", 30)
    ran = processes.run(processes.PYTHON, "-m", "tests.robust.fuzz", *limits, "--findings", tmp_path)
    assert ran.returncode == 0, ran.stdout[-4_000:] + ran.stderr[-2_000:]
    assert "0 findings" in ran.stdout


@pytest.mark.parametrize("folder", sorted(FINDINGS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
@pytest.mark.filterwarnings("ignore")
def test_what_was_found_stays_mended(folder: Path) -> None:
    target = targets()[folder.parent.name]
    assert outcome(target, folder) is None


def test_a_finding_is_kept_and_told(tmp_path: Path) -> None:
    """The runner itself: a reader that fails is found, its folder is kept, and the exit code says so."""
    code = (
        "import sys; from tests.robust import fuzz; from tests.robust.fuzz import Target\n"
        "def make(folder): folder.mkdir(); (folder / 'a.txt').write_text('whole')\n"
        "def read(folder):\n"
        "    text = (folder / 'a.txt').read_bytes()\n"
        "    if text != b'whole': raise KeyError(len(text))\n"
        "fuzz.targets = lambda: {'a': Target('a', make, read)}\n"
        "sys.exit(fuzz.main(sys.argv[1:]))"
    )
    options = ["--worker", "--cases", "5", "--seconds", "20", "--targets", "a", "--findings", str(tmp_path)]
    ran = processes.run(processes.PYTHON, "-c", code, *options)
    assert "KeyError" in ran.stdout
    assert list(tmp_path.glob("a/*/a.txt"))
