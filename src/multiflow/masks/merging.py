"""LoRA on sparse weights: what a factor adds where weights are dropped is neither computed nor merged.

peft computes ``(W + s B A) x`` and merges ``s B A`` into W, which fills its zeros. With the mask M of the layer it is

    (W + s (B A) * M) x

inside `keep_sparse`, as in MaskLoRA (PERP, arXiv 2312.15230): what is trained is what is merged, and zeros stay zeros.
The factors themselves are dense. The same holds for other adapters that add a product to a weight.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from multiflow.base.wrapped import tuned_layers

DELTA = "get_delta_weight"
"""Method of peft's layers that gives what is merged."""


class Zeroes(Protocol):
    """Which weights of a layer are kept."""

    def zero_(self, tensor: Tensor) -> None:
        """Put what is dropped to 0.0, in place."""


def mask_factors(model: nn.Module, kept: Mapping[tuple[int, str], Zeroes], stack: ExitStack) -> None:
    """Let what adapters add to sparse layers be sparse, until the stack is closed; and merges after it, too.

    Args:
        model: with adapters or without.
        kept: identity of a module, name of its parameter -> which of its weights are kept, as it is stored.
        stack: undoes everything but the last: layers that are put back into the model when their adapters are merged,
            however late, are zeroed once more.
    """
    for tuner, layer in tuned_layers(model):
        of = kept.get((id(layer), getattr(tuner, "parameter_name", "weight")))
        if of is None:
            continue
        if hasattr(tuner, DELTA) and DELTA not in vars(tuner):
            setattr(tuner, DELTA, MaskedDelta(tuner, of))
            stack.callback(vars(tuner).pop, DELTA, None)
        downs, ups = (tuner._modules.get(side) for side in ("lora_A", "lora_B"))
        if isinstance(downs, nn.ModuleDict) and isinstance(ups, nn.ModuleDict):
            for name in ups:
                if name in downs and isinstance(downs[name], nn.Linear) and isinstance(ups[name], nn.Linear):
                    product = MaskedProduct(tuner, name, of)
                    stack.callback(downs[name].register_forward_pre_hook(product.take).remove)
                    stack.callback(ups[name].register_forward_hook(product.give).remove)
    stack.callback(_let_go, model, kept)


def _let_go(model: nn.Module, kept: Mapping[tuple[int, str], Zeroes]) -> None:
    for _, layer in tuned_layers(model):
        if (of := kept.get((id(layer), "weight"))) is not None:
            zero_when_put_back(layer, of)


class MaskedDelta:
    """What an adapter adds to a layer, without that which falls on dropped weights; a copy of the layer gets its own.

    Args:
        tuner: the adapter's layer.
        kept: which weights are kept.
    """

    def __init__(self, tuner: nn.Module, kept: Zeroes) -> None:
        self._tuner, self._kept = tuner, kept

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        """Give what is merged."""
        delta = getattr(type(self._tuner), DELTA)(self._tuner, *args, **options)
        return _Masked.apply(delta, self._kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskedDelta:
        return MaskedDelta(memo.get(id(self._tuner), self._tuner), self._kept)


class MaskedProduct:
    """Computes the two factors of LoRA as one matrix with its zeros; a copy of the layer gets its own.

    Args:
        tuner: the adapter's layer.
        name: of the adapter.
        kept: which weights are kept.
    """

    def __init__(self, tuner: nn.Module, name: str, kept: Zeroes) -> None:
        self._tuner, self._name, self._kept = tuner, name, kept
        self._input: Tensor | None = None

    def take(self, down: nn.Module, args: tuple[Any, ...]) -> None:
        """Remember what goes into the first factor."""
        self._input = args[0]

    def give(self, up: nn.Linear, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Replace what comes out of the second one."""
        value, self._input = self._input, None
        if value is None:
            return output
        down: Any = self._tuner.lora_A[self._name]  # type: ignore[index]
        product = up.weight @ down.weight
        if getattr(self._tuner, "fan_in_fan_out", False):  # the layer stores its weight (in, out)
            return F.linear(value, _Masked.apply(product.T, self._kept).T, up.bias)
        return F.linear(value, _Masked.apply(product, self._kept), up.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskedProduct:
        return MaskedProduct(memo.get(id(self._tuner), self._tuner), self._name, self._kept)


class _Masked(torch.autograd.Function):
    """A product with its dropped entries zero, and their gradients as well."""

    @staticmethod
    def forward(context: Any, product: Tensor, kept: Zeroes) -> Tensor:
        context.kept = kept
        masked = product.detach().clone()
        kept.zero_(masked)
        return masked

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone()
        context.kept.zero_(gradient)
        return gradient, None


_late: weakref.WeakKeyDictionary[nn.Module, Zeroes] = weakref.WeakKeyDictionary()
"""Layers inside adapters that keep_sparse has let go of -> which of their weights are kept."""
_watch: list[Callable[[], None]] = []


def zero_when_put_back(layer: nn.Module, kept: Zeroes) -> None:
    """Zero a layer's dropped weights when it is put back into a model in place of the adapter around it."""
    _late[layer] = kept
    if not _watch:
        _watch.append(register_module_module_registration_hook(_put_back).remove)


def _put_back(owner: nn.Module, name: str, layer: Any) -> None:
    if not isinstance(layer, nn.Module) or name == "base_layer":
        return
    if (kept := _late.pop(layer, None)) is not None and isinstance(layer.weight, Tensor):
        with torch.no_grad():
            kept.zero_(layer.weight)
    if not _late and _watch:
        _watch.pop()()
