"""Calibrations that `ranks_worker` kills in both processes, and goes on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

import multiflow as mf
from multiflow.base import parallel
from tests import golden_data
from tests.ranks_pruning import FAINT, SHORT, TRAINING, blip_batches, kept
from tests.small import ADAPTER, towers_batches, two_towers


class Killed(Exception):
    pass


def killed(data: list[Any], count: int) -> Iterator[Any]:
    yield from data[:count]
    raise Killed


def go_on(folder: Path) -> dict[str, Any]:
    """Kill a calibration after 6 of 9 batches, then lose the file of one process on the way as well."""
    data, place = towers_batches(*range(1, 10)), mf.Checkpoint(folder / "stats.safetensors", every=3)

    def calibrate(batches: Any) -> mf.Stats:
        return mf.calibrate(two_towers(), batches, adapter=ADAPTER, checkpoint=place)

    whole = mf.calibrate(two_towers(), data, adapter=ADAPTER)
    found: dict[str, Any] = {"whole": dict(whole["input_norm"])}
    for case in ("killed", "one file lost"):
        try:
            calibrate(killed(data, 6))
        except (Killed, mf.MultiflowError) as error:
            found["error"] = type(error).__name__
        found["files"] = sorted(path.name for path in folder.iterdir())
        parallel.exchange("look")
        if case == "one file lost" and parallel.rank() == 1:
            (folder / "stats-rank1.safetensors").unlink()
        found[case] = dict(calibrate(data)["input_norm"])
        parallel.exchange("look")
    found["left"] = sorted(path.name for path in folder.iterdir())
    return found


def go_on_with_blip(folder: Path) -> dict[str, Any]:
    """Kill BLIP, whose queues and momentum copies a checkpoint holds too; then lose the file of one process as well."""
    data, place = blip_batches(5), mf.Checkpoint(folder / "stats.safetensors", every=2)

    def measure(batches: Any, checkpoint: mf.Checkpoint | None = place) -> dict[str, Tensor]:
        model = golden_data.model("blip")
        stats = mf.calibrate(model, batches, statistics=["gradient"], checkpoint=checkpoint)
        return dict(stats["gradient"])

    found: dict[str, Any] = {"whole": measure(data, None)}
    for case in ("killed", "one file lost"):
        with suppress(Killed, mf.MultiflowError):
            measure(killed(data, 3))
        found["files"] = sorted(path.name for path in folder.iterdir())
        parallel.exchange("look")
        if case == "one file lost" and parallel.rank() == 0:
            (folder / "stats.safetensors").unlink()
        found[case] = measure(data)
        parallel.exchange("look")
    return found


def go_on_in_steps(folder: Path) -> dict[str, Any]:
    """Kill methods that work in steps; keep one file to be resumed by a single process."""
    data, found = towers_batches(4, 3, 2, 1, 5), {}
    for method, settings in (("itersnip", SHORT), ("tamt", TRAINING)):
        place = mf.Checkpoint(folder / f"{method}.safetensors", every=1)

        def prune(batches: Any, of=method, using=settings, at=place) -> dict[str, Tensor]:
            return kept(mf.prune(two_towers(), of, 0.75, batches, adapter=FAINT, checkpoint=at, **using))

        for stop in (4, 2):  # the second kill comes before the second step: nothing new is saved
            with suppress(Killed, mf.MultiflowError):
                prune(killed(data, stop))
        files = sorted(path.name for path in folder.glob(f"{method}*"))
        parallel.exchange("look")
        found[method] = {"files": files, "masks": prune(data)}
        parallel.exchange("look")
    found["left"] = sorted(path.name for path in folder.iterdir())
    return found


def keep_a_file(folder: Path) -> None:
    """Leave the checkpoint of a calibration by two processes, for one that is alone."""
    place = mf.Checkpoint(folder / "stats.safetensors", every=1)
    mf.calibrate(two_towers(), killed(towers_batches(), 2), adapter=ADAPTER, checkpoint=place)
