"""`Stats`: what calibration measures, as sums that add up.

A statistic is a mean over observations (tokens, say), possibly followed by a function of that mean. What is kept are
the sums, in float64, and the numbers of observations: sums over parts of the data merge by addition, and the order of
the batches makes no difference that the float32 result could show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiflow.base.artifacts import check_tensors, read_tensors, write_tensors
from multiflow.base.errors import MultiflowError, counted
from multiflow.base.parallel import exchange, sum_over_ranks_
from multiflow.base.registry import Registry
from multiflow.calibration.batches import check_some

MOST = 1 << 53  # of batches and tokens: more are no numbers of anything


@dataclass(frozen=True, slots=True)
class Statistic:
    """A quantity that pruners may ask for by name.

    Args:
        name: the keyword under which pruners ask for it.
        unit: what one number says, and over what the mean is taken.
        finish: makes the statistic of the mean, ``f(mean) -> tensor``.
    """

    name: str
    unit: str
    finish: Callable[[Tensor], Tensor]


STATISTICS: Registry[Statistic] = Registry("statistic")
STATISTICS.add(
    "input_norm",
    Statistic("input_norm", "root mean square of each input feature over the real tokens, (in,)", torch.sqrt),
)
STATISTICS.add(
    "input_mean",
    Statistic("input_mean", "mean of each input feature over the real tokens, (in,)", lambda mean: mean),
)
STATISTICS.add(
    "input_moment",
    Statistic("input_moment", "mean of x x' of the inputs x over the real tokens, (in, in)", lambda mean: mean),
)
STATISTICS.add(
    "gradient",
    Statistic("gradient", "mean over batches of the gradient of the pretraining loss, (out, in)", lambda mean: mean),
)


def stack_of(layer: str) -> str:
    """Return the name of an expert's layer without the number of the expert.

    >>> stack_of("layers.0.mlp.experts.gate_up_proj.3"), stack_of("layers.0.mlp.experts.3.w1")
    ('layers.0.mlp.experts.gate_up_proj.N', 'layers.0.mlp.experts.N.w1')
    """
    return re.sub(r"\.\d+(?=\.|$)(?!.*\.\d+(\.|$))", ".N", layer)


@dataclass(frozen=True)
class Stats(Mapping[str, Mapping[str, Tensor]]):
    """Statistic name -> layer name -> float32 tensor.

    Args:
        sums: statistic -> layer -> sum over all observations; float64, gradients float32.
        counts: statistic -> layer -> number of observations.
        batches: number of batches that the observations come from.
        buffers: the model's, as the batches have left them; only where a run goes on from there.
        unused: layers that were left out, since nothing of the model's output depends on them.
    """

    sums: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    counts: Mapping[str, dict[str, int]] = field(default_factory=dict)
    batches: int = 0
    buffers: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    unused: tuple[str, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        names = ", ".join(f"{name} of {counted(len(layers), 'layer')}" for name, layers in self.sums.items())
        return f"Stats({names or 'empty'}, {counted(self.batches, 'batch', 'batches')})"

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        return {layer: self.get_layer(name, layer) for layer in self.sums[name]}

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)

    def __len__(self) -> int:
        return len(self.sums)

    def get_layer(self, name: str, layer: str) -> Tensor:
        """Return one statistic of one layer; that of an expert without tokens is as `_alike` says."""
        total, count = self.sums[name][layer], self.counts[name][layer]
        return STATISTICS[name].finish(total / count if count else self._alike(name, layer)).float()

    @property
    def is_complete(self) -> bool:
        """Whether every layer has seen something, or is one of a stack of which another has."""
        return all(
            count or stack_of(layer) in {stack_of(other) for other, some in of.items() if some}
            for of in self.counts.values()
            for layer, count in of.items()
        )

    def _alike(self, name: str, layer: str) -> Tensor:
        """The mean of an expert to which no token was sent: all features alike, as those of its stack on average."""
        total, stack = self.sums[name][layer], stack_of(layer)
        level = self._levels.get((name, stack), 0.0)
        return total.new_full(total.shape, level) if total.dim() == 1 else total.new_ones(len(total)).diag() * level

    @cached_property
    def _levels(self) -> dict[tuple[str, str], float]:
        """Statistic, stack -> the mean square of a feature, over the layers that saw something, in the same one."""
        found: dict[tuple[str, str], list[float]] = {}
        for name, of in self.sums.items():
            unused = {stack_of(layer) for layer, count in self.counts[name].items() if not count}
            for layer, total in of.items():
                if (count := self.counts[name][layer]) and stack_of(layer) in unused and name != "gradient":
                    mean = (total if total.dim() == 1 else total.diag()).mean() / count
                    found.setdefault((name, stack_of(layer)), []).append(float(mean))
        return {key: sum(values) / len(values) for key, values in found.items()}

    def merge(self, other: Stats) -> Stats:
        """Add the observations of two parts of the data; neither is changed."""
        sums: dict[str, dict[str, Tensor]] = {name: dict(of) for name, of in self.sums.items()}
        counts = {name: dict(of) for name, of in self.counts.items()}
        both: dict[tuple[int, int], Tensor] = {}  # layers that hold one sum together go on to
        for name, layers in other.sums.items():
            mine, number = sums.setdefault(name, {}), counts.setdefault(name, {})
            for layer, value in layers.items():
                if layer in mine:
                    pair = id(self.sums[name][layer]), id(value)
                    if pair not in both:
                        both[pair] = mine[layer] + value.to(mine[layer].device)
                    value = both[pair]
                mine[layer] = value
                number[layer] = number.get(layer, 0) + other.counts[name][layer]
        measured = {layer for of in sums.values() for layer in of}
        unused = tuple(dict.fromkeys(name for name in (*self.unused, *other.unused) if name not in measured))
        return Stats(sums, counts, self.batches + other.batches, unused=unused)

    @staticmethod
    def join(parts: Sequence[Stats]) -> Stats:
        """Put different statistics of the same batches together."""
        sums = {name: of for part in parts for name, of in part.sums.items()}
        counts = {name: of for part in parts for name, of in part.counts.items()}
        return Stats(sums, counts, parts[0].batches, unused=parts[0].unused)

    def save(self, path: str | Path, **extra: Any) -> Path:
        """Write the sums to a safetensors file, the rest and ``extra`` (JSON) into its metadata."""
        parts = {**self.sums, **({"buffer": self.buffers} if self.buffers else {})}
        tensors = {f"{name}/{key}": tensor for name, of in parts.items() for key, tensor in of.items()}
        header = {
            "counts": self.counts,
            "batches": self.batches,
            "units": {name: STATISTICS[name].unit for name in self},
            "extra": extra,
            **({"unused": self.unused} if self.unused else {}),
        }
        return write_tensors(path, tensors, header)

    @staticmethod
    def load(path: str | Path) -> Stats:
        """Read what `save` wrote."""
        return read_stats(path)[0]


def sum_stats_(stats: Stats) -> Stats:
    """Add the observations of all processes up: the sums in place, the counts anew."""
    first: dict[int, tuple[str, str]] = {}
    together = {
        (name, layer): first.setdefault(id(total), (name, layer))
        for name, of in stats.sums.items()
        for layer, total in of.items()
    }
    if any(other != together for other in exchange("together", together)):  # of other processes: each sum by itself
        for (name, layer), other in together.items():
            if other != (name, layer):
                stats.sums[name][layer] = stats.sums[name][layer].clone()
        together = {key: key for key in together}
    sum_over_ranks_(stats.sums[name][layer] for name, layer in dict.fromkeys(together.values()))
    everyone = exchange("counts", stats.counts)
    counts = {name: {layer: sum(of[name][layer] for of in everyone) for layer in stats.counts[name]} for name in stats}
    return Stats(stats.sums, counts, stats.batches)


def read_stats(path: str | Path) -> tuple[Stats, dict[str, Any]]:
    """Read a file that `Stats.save` wrote: the statistics and what was saved with them.

    Raises:
        MultiflowError: a damaged or altered file, one that holds something else, or sums that are not finite.
    """
    tensors, header = read_tensors(path, "statistics")
    if "counts" not in header:
        raise MultiflowError(f"'{path}' holds no statistics but another checkpoint of ours; delete it or use another")
    counts, extra = header["counts"], header.get("extra")
    batches: Any = header.get("batches")
    fine = _is_count(batches) and isinstance(counts, dict)
    if (
        not isinstance(extra, dict)
        or not fine
        or not all(isinstance(of, dict) and all(map(_is_count, of.values())) for of in counts.values())
    ):
        raise MultiflowError(f"'{path}' holds statistics whose numbers of batches or tokens make no sense; delete it")
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in [*counts, "buffer"]}
    for key, tensor in tensors.items():
        name, _, layer = key.partition("/")
        if name not in sums:
            raise MultiflowError(f"'{path}' holds '{key}', which belongs to none of its statistics; delete it")
        sums[name][layer] = tensor
    buffers = sums.pop("buffer")
    unused = header.get("unused", [])
    if not isinstance(unused, list) or not all(isinstance(name, str) for name in unused):
        raise MultiflowError(f"'{path}' holds statistics that left out {unused!r}, which are no layers; delete it")
    for name, of in counts.items():
        expected = torch.float32 if name == "gradient" else torch.float64
        like = {layer: (tuple(sums[name][layer].shape) if layer in sums[name] else (), [expected]) for layer in of}
        check_tensors(path, sums[name], like, "delete it")
    return Stats(sums, counts, batches, buffers, tuple(unused)), extra


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def check_start(start: Stats, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], batches: int | None) -> None:
    """Check that statistics to go on from are those of the model's layers, and of no more batches than there are.

    Args:
        start: read from a checkpoint.
        shapes: statistic -> layer -> the shape of its sum.
        batches: how many there are, where that is known.
    """
    for name, of in shapes.items():
        found = {layer: tuple(total.shape) for layer, total in start.sums.get(name, {}).items()}
        for layer in [*of, *found]:
            if found.get(layer) != of.get(layer) or layer not in start.counts[name]:
                raise MultiflowError(
                    f"the checkpoint's {name} of layer '{layer}' has shape {found.get(layer)}, the model wants "
                    f"{of.get(layer)}; delete the checkpoint to begin afresh"
                )
    if batches is not None:
        check_some(max(batches, 1), start.batches)


@dataclass(frozen=True, slots=True)
class Doubling:
    """How far the masks after some batches agree with those of half as many.

    Args:
        batches: after how many the masks were made.
        before: after how many those they are compared with; more than half where the data end between two doublings.
        agreement: sparsity -> share of the weights kept by the former that the latter keep as well.
        samples: how many samples the batches hold, where that can be counted.
    """

    batches: int
    before: int
    agreement: Mapping[float, float]
    samples: int | None = None


def is_stable(curve: Sequence[Doubling], threshold: float) -> bool:
    """Whether the last point of a curve is a doubling after which the masks agree well enough at every sparsity.

    >>> is_stable([Doubling(2, 1, {0.5: 0.9}), Doubling(4, 2, {0.5: 0.996})], 0.995)
    True
    >>> is_stable([Doubling(5, 4, {0.5: 0.996})], 0.995)    # the data ended before their second doubling
    False
    """
    if not curve:
        return False
    last = curve[-1]
    return last.batches >= 2 * last.before and min(last.agreement.values()) >= threshold
