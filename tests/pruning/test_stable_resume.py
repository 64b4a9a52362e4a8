"""Runs with ``until_stable`` that were killed go on to the same masks and the same curve."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import multiflow as mf
from multiflow.calibration import Checkpoint
from multiflow.pruning import stable
from tests.pruning.test_stable import UNREACHED, batches, prune


class Killed(Exception):
    pass


def killed_after(data: list[Any], count: int) -> Iterator[Any]:
    yield from data[:count]
    raise Killed


@pytest.mark.parametrize("method", ["multiflow", "snip"])
@pytest.mark.parametrize("every", [3, 100])
def test_a_killed_run_goes_on_to_the_same_masks_and_curve(method: str, every: int, tmp_path: Path) -> None:
    data = batches(11)
    whole = prune(data, method, until_stable=UNREACHED)
    place = Checkpoint(tmp_path / "stats.safetensors", every)
    for count in (0, 1, 3, 7, 8, 11):
        with pytest.raises(Killed):
            prune(killed_after(data, count), method, until_stable=UNREACHED, checkpoint=place)
        assert len(list(tmp_path.iterdir())) == (2 if count else 0)
        result = prune(data, method, until_stable=UNREACHED, checkpoint=place)
        assert (result.masks, result.curve, result.settings) == (whole.masks, whole.curve, whole.settings), count
        assert list(tmp_path.iterdir()) == []


WRITES = [("save", 1), ("save", 2), ("save", 4), ("save_state", 1), ("save_state", 3), ("delete", 1), ("delete", 2)]


@pytest.mark.parametrize(("write", "number"), WRITES)
def test_killed_before_any_write(write: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches(6)
    threshold = min(prune(data, until_stable=UNREACHED).curve[1].agreement.values())
    whole = prune(data, until_stable=threshold)
    assert whole.stable
    assert whole.stats.batches == 4
    place = Checkpoint(tmp_path / "stats.safetensors", 1)
    function, calls = getattr(Checkpoint, write), itertools.count(1)

    def cut(*args: Any, **options: Any) -> Any:
        if next(calls) == number:
            raise Killed
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, write, cut)
        with pytest.raises(Killed):
            prune(data, until_stable=threshold, checkpoint=place)
    result = prune(data, until_stable=threshold, checkpoint=place)
    assert (result.masks, result.curve, result.settings) == (whole.masks, whole.curve, whole.settings)
    assert not place.part(stable.HALF)._there()


def test_it_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    data = batches(11)
    place = Checkpoint(tmp_path / "stats.safetensors", 3)
    with pytest.raises(Killed):
        prune(killed_after(data, 7), until_stable=UNREACHED, checkpoint=place)
    told = []
    prune(data, until_stable=UNREACHED, checkpoint=place, progress=lambda what, done, total: told.append(done))
    assert told == [7, 8, 9, 10, 11]


def test_files_of_two_runs_are_not_mixed(tmp_path: Path) -> None:
    data = batches(11)
    place, other = (Checkpoint(tmp_path / name / "stats.safetensors", 1) for name in ("a", "b"))
    for at, count in ((place, 9), (other, 2)):
        with pytest.raises(Killed):
            prune(killed_after(data, count), until_stable=UNREACHED, checkpoint=at)
    Path(other.part(stable.HALF).path).replace(place.part(stable.HALF).path)
    result, whole = (prune(data, until_stable=UNREACHED, checkpoint=at) for at in (place, None))
    assert (result.masks, result.curve) == (whole.masks, whole.curve)


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"method": "wanda"}, "method"),
        ({"sparsity": 0.5}, "sparsities"),
        ({"until_stable": 0.9}, "until_stable"),
        ({"until_stable": None}, "until_stable"),
    ],
)
def test_a_checkpoint_of_other_settings(options: dict[str, Any], differs: str, tmp_path: Path) -> None:
    place = Checkpoint(tmp_path / "stats.safetensors", 1)
    with pytest.raises(Killed):
        prune(killed_after(batches(4), 3), until_stable=UNREACHED, checkpoint=place)
    with pytest.raises(mf.MultiflowError, match=f"other settings: .*{differs}"):
        prune(batches(4), **{"until_stable": UNREACHED, **options}, checkpoint=place)
