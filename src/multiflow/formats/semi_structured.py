"""2:4 on GPUs: layers whose masks keep two of every four weights, in torch's semi-structured form.

torch stores such a weight as its kept values and two bits each, and multiplies it on the sparse tensor cores of GPUs of
compute capability 8.0 or more. Which shapes and dtypes it takes is asked of torch; whether it pays is measured for each
shape, and a layer for which it does not stays dense.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiflow.base.errors import MultiflowError
from multiflow.masks import Masks

CAPABILITY = (8, 0)
MEASURED_TOKENS = 4096
TURNS_ON_GPU = 20
Pays = Callable[[Tensor, Tensor], bool]
"""``f(dense, semi-structured)``: whether the second multiplies faster."""


def has_sparse_cores(device: torch.device) -> bool:
    """Whether a device has sparse tensor cores that torch knows."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY


def why_not(mask: Tensor, weight: Tensor) -> str | None:
    """Return why a layer cannot be semi-structured, or None if it can."""
    from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUSPARSELT
    from torch.sparse import SparseSemiStructuredTensorCUTLASS as Cutlass

    rows, columns = weight.shape
    if columns % 4 or int(mask.view(rows, -1, 4).sum(-1).max()) > 2:
        return "its mask keeps more than two of four weights"
    kind: Any = Cutlass if SparseSemiStructuredTensor._FORCE_CUTLASS else SparseSemiStructuredTensorCUSPARSELT
    sizes = kind._DTYPE_SHAPE_CONSTRAINTS.get(weight.dtype)
    if sizes is None:
        return f"torch has no sparse product in {str(weight.dtype).removeprefix('torch.')}; use bfloat16 or float16"
    if rows % sizes.sparse_min_rows or columns % sizes.sparse_min_cols:
        return f"its sizes {rows} x {columns} are no multiples of {sizes.sparse_min_rows} x {sizes.sparse_min_cols}"
    return None


def semi_structured(
    model: nn.Module, masks: Masks, weights: Mapping[str, Tensor] | None = None, pays: Pays | None = None
) -> Any:
    """Return a copy of a model on a GPU whose 2:4 layers are semi-structured where that is possible and pays.

    Args:
        model: on a GPU, in bfloat16 or float16; it is not changed.
        masks: of this model, made with ``pattern="2:4"``.
        weights: layer name -> the weight that a method changed; None = the model's own.
        pays: decides for each layer; None = measured on this GPU.

    Raises:
        MultiflowError: the masks are those of another model, or no layer can be semi-structured; says why.
    """
    from torch.sparse import to_sparse_semi_structured

    found = masks.find_weights(model)
    device = next(iter(found.values()))[0].device
    if not has_sparse_cores(device):
        raise MultiflowError(
            f"the model is on {device}, which has no sparse tensor cores; 2:4 needs a GPU of compute capability "
            f"{'.'.join(map(str, CAPABILITY))} or more, on CPUs take mf.sparse_runtime"
        )
    reasons = {name: why for name, own in found.items() if (why := why_not(masks[name], own[0]))}
    if len(reasons) == len(found):
        name, why = next(iter(reasons.items()))
        raise MultiflowError(f"no layer can be semi-structured: '{name}', say, {why}; prune with pattern='2:4'")
    decide = _Measured() if pays is None else pays
    result = copy.deepcopy(model)
    slower = 0
    for layer in masks.layout.layers:
        own = found[layer.name][0].detach()
        new = own if weights is None else weights[layer.name].to(own)
        dense = torch.where(masks[layer.name].to(device), new, new.new_zeros(())).contiguous()
        kept: Tensor = dense
        if layer.name not in reasons:
            packed = to_sparse_semi_structured(dense)
            if decide(dense, packed):
                kept = packed
            else:
                slower += 1
        parameter = nn.Parameter(kept, requires_grad=False)
        for path in layer.paths:
            module: Any = result.get_submodule(path)
            module.weight = parameter
    if reasons or slower:
        warnings.warn(
            f"of {len(found)} layers {len(reasons)} cannot be semi-structured and {slower} would not be faster; "
            "they are dense with zeros",
            stacklevel=4,
        )
    return result


class _Measured:
    """Measures each shape once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], bool] = {}

    def __call__(self, dense: Tensor, packed: Tensor) -> bool:
        key = (tuple(dense.shape), dense.dtype)
        if key not in self._known:
            inputs = torch.randn(MEASURED_TOKENS, dense.shape[1], device=dense.device, dtype=dense.dtype)
            with torch.inference_mode():
                times = [_seconds(weight, inputs) for weight in (dense, packed)]
            self._known[key] = times[1] < times[0]
        return self._known[key]


def _seconds(weight: Tensor, inputs: Tensor) -> float:
    best = float("inf")
    for turn in range(TURNS_ON_GPU):
        torch.cuda.synchronize(inputs.device)
        begun = time.perf_counter()
        F.linear(inputs, weight)
        torch.cuda.synchronize(inputs.device)
        best = min(best, time.perf_counter() - begun) if turn else best
    return best
