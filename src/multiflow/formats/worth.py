"""What sparse models are worth: their quality beside the bytes and the milliseconds that they cost on this machine.

A short measurement for reports, next to models whose quality is known: the dense model, torch's int8, and the sparse
runtime at each sparsity, in turns, on a few samples. `multiflow.formats.speeds` measures all forms at length.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError
from multiflow.base.kernels import NoKernelsError, kernels
from multiflow.families import adapter_for
from multiflow.formats.figures import WHOLE
from multiflow.formats.runtime import sparse_runtime
from multiflow.formats.speeds import speed, zeros_of
from multiflow.masks import Masks

SAMPLES = 8
MOST = 300_000_000
"""Weights of a model of which each form is a copy in memory."""
DENSE, INT8, SPARSE = "dense fp32", "dense int8", "sparse bf16"


@dataclass(frozen=True)
class FormWorth:
    """One form of a model.

    Args:
        form: what it is: ``dense fp32``, ``dense int8`` or ``sparse bf16``.
        sparsity: that its masks were made for; 0 is dense.
        memory: bytes of its weights.
        seconds: of a forward of `SAMPLES` samples, the median.
        spread: half the distance of the quartiles over the median.
        quality: of the model, in percent; None where it was not evaluated in this form.
        by: which pruner made the masks.
    """

    form: str
    sparsity: float
    memory: int
    seconds: float
    spread: float
    quality: float | None = None
    by: str = ""


def measure_worth(
    model: nn.Module,
    masks: Mapping[float, Masks],
    weights: Mapping[float, Any] | None = None,
    *,
    quality: Mapping[float, float],
    by: Mapping[float, str],
    adapter: Adapter | None = None,
    batch: Any = None,
    seconds: float = 4.0,
) -> tuple[FormWorth, ...]:
    """Measure the dense model and its sparse forms side by side.

    Nothing is measured of a model that lies on another device than the CPU, or has more than `MOST` weights; where it
    does not run, a warning says why.

    The quality of a form in bfloat16 is that of the masked model, which was evaluated; int8 was not.

    Args:
        model: dense.
        masks: sparsity -> masks.
        weights: sparsity -> what the method changed.
        quality: sparsity -> quality of the masked model in percent; that of 0 is the dense model's.
        by: sparsity -> the pruner that made the masks.
        adapter: of the model.
        batch: to run; None = random images and texts.
        seconds: about how long to measure.
    """
    if next(model.parameters()).device.type != "cpu" or sum(p.numel() for p in model.parameters()) > MOST:
        return ()
    others: dict[str, nn.Module] = {}
    try:
        kernels()
        for sparsity, of in masks.items():
            changed = None if weights is None else weights.get(sparsity)
            others[f"{SPARSE} {sparsity}"] = sparse_runtime(model, of, weights=changed)
    except NoKernelsError:  # without a compiler the sparse runtime is no runtime
        pass
    how: dict[str, Any] = {"batch": batch, "adapter": adapter, "seconds": seconds, "files": False, "steps": False}
    try:
        found = speed(model, samples=(SAMPLES,), forms=[DENSE, INT8], others=others, **how)
    except MultiflowError as error:
        warnings.warn(f"bytes and milliseconds were not measured: {error}", stacklevel=2)
        return ()
    worth = []
    known = {DENSE: (DENSE, 0.0), INT8: (INT8, 0.0), **{f"{SPARSE} {s}": (SPARSE, s) for s in masks}}
    for name, (form, sparsity) in known.items():
        timing = next((cell.timing for cell in found.cells if (cell.form, cell.part) == (name, WHOLE)), None)
        if timing is not None:
            there = None if form == INT8 else quality.get(sparsity)
            took = timing.median, timing.spread
            worth.append(FormWorth(form, sparsity, found.sizes[name].memory, *took, there, by.get(sparsity, "")))
    return tuple(worth)


def forward_cost(model: nn.Module, seconds: float = 0.25) -> dict[str, float]:
    """Measure a sparse model beside its dense form, briefly, for a record; empty where that is not possible here.

    Times are those that the processor spends on this process: others may work beside it. Models of one class and
    sizes whose zeros are in the same places take the same time: a process measures one of them.

    Args:
        model: with its zeros. One without many is its own dense form.
        seconds: about how long to measure.

    Returns:
        ``forward`` and ``dense_forward``, seconds of `SAMPLES` samples in the sparse runtime and dense in float32;
        ``memory`` and ``dense_memory``, bytes of the weights.
    """
    if next(model.parameters()).device.type != "cpu" or sum(p.numel() for p in model.parameters()) > MOST:
        return {}
    try:
        masks = zeros_of(model, adapter_for(model).layout(model))
        zeros = {} if masks is None else {name: zlib.crc32(masks.packed[name].data) for name in masks}
        sizes = [(name, tuple(one.shape)) for name, one in model.named_parameters()]
        key = repr((type(model), sizes, zeros, torch.get_num_threads()))
        if key in _measured:
            return dict(_measured[key])
        others: dict[str, nn.Module] = {}
        if masks is not None:
            kernels()  # without a compiler the sparse runtime is no runtime
            others[SPARSE] = sparse_runtime(model, masks)
        how: dict[str, Any] = {"samples": (SAMPLES,), "forms": [DENSE], "files": False, "steps": False, "clock": "cpu"}
        found = speed(model, others=others, seconds=seconds, progress=False, **how)
    except MultiflowError:
        return {}
    dense, own = (found.find(form, WHOLE, SAMPLES) for form in (DENSE, SPARSE if others else DENSE))
    if dense is None or own is None:
        return {}
    cost = {
        "forward": own.median,
        "dense_forward": dense.median,
        "memory": found.sizes[SPARSE if others else DENSE].memory,
        "dense_memory": found.sizes[DENSE].memory,
    }
    _measured[key] = cost
    return dict(cost)


_measured: dict[str, dict[str, float]] = {}
