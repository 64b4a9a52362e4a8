"""`Stats`: what calibration measures, as sums that add up.

A statistic is a mean over observations (tokens, say), possibly followed by a function of that mean. What is kept are
the sums, in float64, and the numbers of observations: sums over parts of the data merge by addition, and the order of
the batches makes no difference that the float32 result could show.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.base.ranks import exchange, sum_over_ranks_
from multiflow.base.registry import Registry


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
    "input_moment",
    Statistic("input_moment", "mean of x x' of the inputs x over the real tokens, (in, in)", lambda mean: mean),
)
STATISTICS.add(
    "gradient",
    Statistic("gradient", "mean over batches of the gradient of the pretraining loss, (out, in)", lambda mean: mean),
)


@dataclass(frozen=True)
class Stats(Mapping[str, Mapping[str, Tensor]]):
    """Statistic name -> layer name -> float32 tensor.

    Args:
        sums: statistic -> layer -> sum over all observations; float64, gradients float32.
        counts: statistic -> layer -> number of observations.
        batches: number of batches that the observations come from.
        buffers: the model's, as the batches have left them; only where a run goes on from there.
    """

    sums: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    counts: Mapping[str, dict[str, int]] = field(default_factory=dict)
    batches: int = 0
    buffers: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        return {layer: self.get_layer(name, layer) for layer in self.sums[name]}

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)

    def __len__(self) -> int:
        return len(self.sums)

    def get_layer(self, name: str, layer: str) -> Tensor:
        """Return one statistic of one layer."""
        return STATISTICS[name].finish(self.sums[name][layer] / self.counts[name][layer]).float()

    def merge(self, other: Stats) -> Stats:
        """Add the observations of two parts of the data; neither is changed."""
        sums: dict[str, dict[str, Tensor]] = {name: dict(of) for name, of in self.sums.items()}
        counts = {name: dict(of) for name, of in self.counts.items()}
        for name, layers in other.sums.items():
            mine, number = sums.setdefault(name, {}), counts.setdefault(name, {})
            for layer, value in layers.items():
                mine[layer] = mine[layer] + value.to(mine[layer].device) if layer in mine else value
                number[layer] = number.get(layer, 0) + other.counts[name][layer]
        return Stats(sums, counts, self.batches + other.batches)

    @staticmethod
    def join(parts: Sequence[Stats]) -> Stats:
        """Put different statistics of the same batches together."""
        sums = {name: of for part in parts for name, of in part.sums.items()}
        counts = {name: of for part in parts for name, of in part.counts.items()}
        return Stats(sums, counts, parts[0].batches)

    def save(self, path: str | Path, **extra: Any) -> Path:
        """Write the sums to a safetensors file, the rest and ``extra`` (JSON) into its metadata."""
        parts = {**self.sums, **({"buffer": self.buffers} if self.buffers else {})}
        tensors = {f"{name}/{key}": tensor for name, of in parts.items() for key, tensor in of.items()}
        header = {
            "counts": self.counts,
            "batches": self.batches,
            "units": {name: STATISTICS[name].unit for name in self},
            "extra": extra,
        }
        return write_tensors(path, tensors, header)

    @staticmethod
    def load(path: str | Path) -> Stats:
        """Read what `save` wrote."""
        return read_stats(path)[0]


def sum_stats_(stats: Stats) -> Stats:
    """Add the observations of all processes up: the sums in place, the counts anew."""
    sum_over_ranks_(total for of in stats.sums.values() for total in of.values())
    everyone = exchange("counts", stats.counts)
    counts = {name: {layer: sum(of[name][layer] for of in everyone) for layer in stats.counts[name]} for name in stats}
    return Stats(stats.sums, counts, stats.batches)


def read_stats(path: str | Path) -> tuple[Stats, dict[str, Any]]:
    """Read a file that `Stats.save` wrote: the statistics and what was saved with them."""
    tensors, header = read_tensors(path, "statistics")
    if "counts" not in header:
        raise MultiflowError(f"'{path}' holds no statistics but another checkpoint of ours; delete it or use another")
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in [*header["counts"], "buffer"]}
    for key, tensor in tensors.items():
        name, _, layer = key.partition("/")
        sums[name][layer] = tensor
    buffers = sums.pop("buffer")
    return Stats(sums, header["counts"], header["batches"], buffers), header["extra"]


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors to a safetensors file whole or not at all, with a header that JSON can say."""
    there: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        there[name] = here.clone() if place in memory else here  # safetensors wants memory of its own for each
        memory.add(place)
    return write_atomically(path, to_bytes(there, metadata={"multiflow": json.dumps(header)}))


def read_tensors(path: str | Path, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote; a damaged file is an error that calls it ``what``."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["multiflow"])
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise MultiflowError(f"'{path}' holds no {what}, or is damaged ({error}); delete it") from error
