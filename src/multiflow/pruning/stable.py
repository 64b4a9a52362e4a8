"""Calibration that stops when it is done: when twice the data hardly change the masks.

    agreement_n = |kept after n batches and after n / 2| / |kept after n|        at n = 2, 4, 8, ... batches

One running calibration: after batches 1, 2, 4, 8, ... masks are chosen from the statistics so far. When the agreement
reaches the threshold at every sparsity no more batches are taken, and the masks are those of all batches seen. A
checkpoint of the run has a second file with the masks of the last doubling, so that one that goes on draws the same
curve.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from multiflow.base.artifacts import check_tensors
from multiflow.base.errors import MultiflowError
from multiflow.calibration import Doubling, Stats, buffers_restored, is_stable, iterate
from multiflow.pruning.plan import PruningPlan
from multiflow.pruning.stages import Packed, Scores, choose, measure, plan_identity
from multiflow.pruning.steps import count_samples

HALF = "half"  # the part of a checkpoint that holds the masks of the last doubling


@dataclass(frozen=True)
class Stable:
    """What a calibration left that watched its masks settle."""

    stats: Stats  # the statistics of all batches it took
    packed: list[Packed]  # the masks made from them, for each sparsity
    curve: tuple[Doubling, ...]  # the agreement at each doubling
    seconds: float  # spent on choosing masks on the way


def calibrate_until_stable(plan: PruningPlan) -> Stable:
    """Measure the statistic of a job batch by batch until its masks are stable, or the batches are spent."""
    run = _Watched(plan)
    with buffers_restored(plan.model):
        going: dict[str, Any] = {"progress": plan.progress, "start": run.go_on(), "after_batch": run.note}
        stats = measure(plan.model, plan.layout, run, plan.adapter, plan.pruner.statistics[0], **going)
    if stats.batches > run.looked:
        run.look(stats)
    return Stable(stats, run.packed, tuple(run.curve), run.seconds)


class _Watched:
    """The batches of a job, which end when the masks are stable."""

    def __init__(self, plan: PruningPlan) -> None:
        self._plan = plan
        self.packed: list[Packed] = []  # masks of the last doubling
        self.looked = 0  # the batches they come from
        self.curve: list[Doubling] = []
        self.seconds = 0.0
        self._stats: Stats | None = None  # as of the batch that was measured last
        self._samples: int | None = 0
        self._settings: Mapping[str, Any] = {}
        if plan.checkpoint:
            more = {"sparsities": list(plan.sparsities), "statistic": plan.pruner.statistics[0]}
            self._settings = plan_identity(plan, **more)

    def __len__(self) -> int:
        return len(self._plan.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        self._samples = 0
        for number, batch in enumerate(iterate(self._plan.batches), start=1):
            self._count(batch)
            yield batch
            if self._stats and self._stats.batches == number > self.looked and is_doubling(number):
                self.look(self._stats)
            if self.looked == number and is_stable(self.curve, self._plan.request.until_stable):  # type: ignore[arg-type]
                return

    def note(self, stats: Stats) -> None:
        """Take the statistics after a batch; at a doubling they are written before its masks are."""
        self._stats = stats
        if self._plan.checkpoint:
            self._plan.checkpoint.save(stats, self._settings, now=is_doubling(stats.batches))

    def look(self, stats: Stats) -> None:
        """Choose masks, and compare them with the ones before."""
        begun, plan = time.perf_counter(), self._plan
        packed = []
        if stats.is_complete:  # else a layer has seen nothing so far
            scores = Scores(plan, stats)
            packed = choose(plan, scores, plan.sparsities, stats)
        if packed and self.packed:
            shares = map(kept_alike, packed, self.packed)
            agreement = dict(zip(plan.sparsities, shares, strict=True))
            self.curve.append(Doubling(stats.batches, self.looked, agreement, self._samples))
        self.packed, self.looked = packed, stats.batches
        self.seconds += time.perf_counter() - begun
        if plan.checkpoint and is_doubling(stats.batches):
            self._save(plan.checkpoint.part(HALF))

    def _save(self, place: Any) -> None:
        tensors = {f"{i}/{n}": torch.from_numpy(bits) for i, of in enumerate(self.packed) for n, bits in of.items()}
        curve = [[p.batches, p.before, list(p.agreement.values()), p.samples] for p in self.curve]
        place.save_state(tensors, self._settings, {"looked": self.looked, "curve": curve})

    def go_on(self) -> Stats | None:
        """Stand where a checkpoint stood; return its statistics, None to begin afresh."""
        start = self._plan.checkpoint.load(self._settings) if self._plan.checkpoint else None
        if start is None:
            return None
        assert self._plan.checkpoint is not None
        tensors, facts = self._plan.checkpoint.part(HALF).load_state(
            self._settings, most={"looked": start.batches}
        ) or ({}, {"looked": 0, "curve": []})
        if tensors:
            bits = {n: ((-(-layer.size // 8),), [torch.uint8]) for n, layer in self._plan.layout.items()}
            like = {f"{i}/{n}": of for i in range(len(self._plan.sparsities)) for n, of in bits.items()}
            check_tensors(self._plan.checkpoint.part(HALF).path, tensors, like, "delete it")
        last = 1 << (start.batches.bit_length() - 1)
        if facts["looked"] != last and not (start.batches == last == max(1, 2 * facts["looked"])):
            return None  # the two files are not of one run
        packed: list[Packed] = [{} for _ in self._plan.sparsities] if tensors else []
        for key, tensor in tensors.items():
            number, _, name = key.partition("/")
            packed[int(number)][name] = tensor.numpy()
        self.packed, self.looked, self._stats = packed, facts["looked"], start
        for batches, before, shares, samples in facts["curve"]:
            agreement = dict(zip(self._plan.sparsities, shares, strict=True))
            self.curve.append(Doubling(batches, before, agreement, samples))
        return start

    def _count(self, batch: Any) -> None:
        try:
            self._samples = None if self._samples is None else self._samples + count_samples(batch)
        except MultiflowError:  # no tensors to count in
            self._samples = None


def is_doubling(batches: int) -> bool:
    """Whether a number is 1, 2, 4, 8, ...

    >>> [n for n in range(1, 20) if is_doubling(n)]
    [1, 2, 4, 8, 16]
    """
    return batches & (batches - 1) == 0


def kept_alike(first: Packed, second: Packed) -> float:
    """Return the share of the weights kept by the first masks that the second keep as well."""
    both = sum(int(np.bitwise_count(bits & second[name]).sum(dtype=np.int64)) for name, bits in first.items())
    kept = sum(int(np.bitwise_count(bits).sum(dtype=np.int64)) for bits in first.values())
    return both / kept if kept else 1.0
