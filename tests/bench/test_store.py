from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.bench.records import Cell, Pruning, Results

GOOD = Cell("a", "m", "dense", 0.0, "vqa", 0, "1", score=50.0, curve=[(1, 40.0)], each=[0.0, 100.0])
BAD = replace(GOOD, score=None, error="no", curve=[], each=[])
PRUNING = Pruning("p", "m", "wanda", 0, 1.0, 0.5, 32, 100, [("l", "vision", 4)], {0.5: [2]})


def test_records_come_back(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert (results.cells(), results.prunings(), results.expected()) == ({}, {}, [])
    results.append(GOOD)
    results.append(PRUNING)
    results.expect([BAD, GOOD])
    assert results.cells() == {"a": GOOD}
    assert results.prunings() == {"p": PRUNING}
    assert results.expected() == [BAD, GOOD]


def test_the_last_good_line_of_a_cell_counts(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(BAD)
    results.append(replace(BAD, error="again"))
    assert results.cells()["a"].error == "again" == results.cell("a").error  # type: ignore[union-attr]
    better = replace(GOOD, score=60.0)
    for cell in (GOOD, better, BAD):
        results.append(cell)
    assert results.cells()["a"] == better == results.cell("a")
    assert results.cell("b") is None


def test_a_pruning_that_was_gone_on_with_has_the_zeros_of_all(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.append(PRUNING)
    results.append(replace(PRUNING, selection=0.7, zeros={0.75: [3]}))
    assert results.prunings()["p"] == replace(PRUNING, selection=0.7, zeros={0.5: [2], 0.75: [3]})


@pytest.mark.parametrize("torn", ['{"id": "b', '{"id": "ü'.encode()[:-1].decode(errors="ignore"), "{}", "\x00\x00"])
def test_a_torn_last_line_is_passed_over_and_then_cut_off(tmp_path: Path, torn: str) -> None:
    results = Results(tmp_path)
    results.append(GOOD)
    path = tmp_path / "cells.jsonl"
    with path.open("a") as file:
        file.write(torn)
    assert results.cells() == {"a": GOOD}
    results.append(replace(GOOD, id="b"))
    assert list(results.cells()) == ["a", "b"]
    assert len(path.read_text().splitlines()) == 2
    path.write_text(torn)
    results.append(GOOD)
    assert results.cells() == {"a": GOOD}
    assert len(path.read_text().splitlines()) == 1


def test_a_damaged_line_before_the_last_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cells.jsonl").write_text('{"id\n' + json.dumps(asdict(GOOD)) + "\n")
    with pytest.raises(MultiflowError, match=r"line 1 of '.*cells.jsonl' is no JSON"):
        Results(tmp_path).cells()


def test_lines_of_older_versions_have_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "cells.jsonl").write_text(json.dumps(asdict(GOOD)) + "\n")
    Results(tmp_path).append(replace(GOOD, id="b"))
    assert list(Results(tmp_path).cells().values()) == [GOOD, replace(GOOD, id="b")]


def test_a_figure_that_was_altered_is_an_error(tmp_path: Path) -> None:
    results, path = Results(tmp_path), tmp_path / "cells.jsonl"
    results.append(GOOD)
    whole = path.read_text()
    for altered in (whole.replace('"score": ', '"score": 1'), whole[:-1] + "\x0b", whole.replace('"checksum"', '"x"')):
        assert altered != whole
        path.write_text(altered)
        with pytest.raises(MultiflowError, match=r"line 1 of '.*cells.jsonl' (was altered|is no JSON)"):
            results.cells()


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    one, other = Results(tmp_path), Results(tmp_path)
    with one.lock("a", wait=False) as got, other.lock("a", wait=False) as too, other.lock("b", wait=False) as another:
        assert (got, too, another) == (True, False, True)
    with other.lock("a", wait=False) as got:
        assert got


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(fd: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    fcntl = pytest.importorskip("fcntl", reason="locks of Unix")
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(MultiflowError, match=r"/locks/cells.jsonl.lock' cannot be locked \(.*; take a folder"):
        Results(tmp_path).append(GOOD)
    assert not (tmp_path / "cells.jsonl").exists()
