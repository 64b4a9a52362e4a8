"""Distillation without labels: the whole sparse model against the dense one on the same batches.

    L =  mean over blocks  ||h - h_dense||^2 / ||h_dense||^2
       + sum over outputs  D(y, y_dense)

h are the outputs of the blocks (hidden states, padding left out). Of the model's named outputs, D is, by the name,

    ``...logits``                   KL of the classes or tokens
    ``similarity``, ``logits_per``  KL of the in-batch similarities of images and texts, along rows and columns
                                    ("affinity mimicking" of TinyCLIP, arXiv 2309.12314)
    anything else                   ||y - y_dense||^2 / ||y_dense||^2

with weights of one: nothing to tune.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from multiflow.base.adapter import Adapter, TokenMask
from multiflow.recovery.matching import real_tokens
from multiflow.recovery.parts import first_tensor

SIMILARITY = re.compile(r"similarity|logits_per_")
LOGITS = re.compile(r"logits$")
NOT_COMPARED = re.compile(r"^loss|_loss$|past_key_values|attentions|hidden_states")


@contextmanager
def states_taken(model: nn.Module, blocks: Sequence[str], states: list[tuple[str, Tensor]]) -> Iterator[None]:
    """Note what blocks give, inside the ``with``."""

    def hook(path: str) -> Any:
        def take(module: nn.Module, args: Any, output: Any) -> None:
            if (value := first_tensor(output)) is not None:
                states.append((path, value))

        return take

    with ExitStack() as stack:
        for path in blocks:
            stack.callback(model.get_submodule(path).register_forward_hook(hook(path)).remove)
        yield


def named_outputs(adapter: Adapter, model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Run a model on a part of a batch and return its outputs by name; those without one are numbered."""
    found = (adapter.outputs or adapter.forward)(model, batch)
    if isinstance(found, Tensor):
        found = {"output": found}
    if isinstance(found, list | tuple) and not isinstance(found, Mapping):
        found = {str(number): value for number, value in enumerate(found)}
    if not isinstance(found, Mapping):
        return {}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not NOT_COMPARED.search(str(name))
    }


class DenseView:
    """What the dense model says of a part of a batch, to compare sparse ones with.

    Args:
        teacher: the dense model as it is now; it is run once.
        adapter: how models are run.
        blocks: path of a block -> a layer in it, whose stream says which tokens are real.
        batch: a part of a batch, on the device of the models.
    """

    def __init__(self, teacher: nn.Module, adapter: Adapter, blocks: Mapping[str, str], batch: Any) -> None:
        self._adapter, self._blocks, self._batch = adapter, blocks, batch
        self._masks: Mapping[str, TokenMask] = adapter.token_masks(batch) if adapter.token_masks else {}
        self._states: list[tuple[str, Tensor]] = []
        with torch.no_grad(), states_taken(teacher, list(blocks), self._states):
            self._outputs = named_outputs(adapter, teacher, batch)

    def loss(self, student: nn.Module, weights: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """Return the loss of a sparse model; None where there is nothing to compare.

        Args:
            student: the sparse model.
            weights: name of a parameter -> what the sparse model has there in this loss.
        """
        ours: list[tuple[str, Tensor]] = []
        with states_taken(student, list(self._blocks), ours):
            given = functional_call(
                Holder(student),
                {f"model.{name}": weight for name, weight in (weights or {}).items()},
                (lambda model: named_outputs(self._adapter, model, self._batch),),
            )
        hidden = [
            apart(mine, other, real_tokens(self._adapter, self._blocks[path], self._masks, other))
            for (path, mine), (_, other) in zip(ours, self._states, strict=False)
            if mine.shape == other.shape
        ]
        losses = [torch.stack(hidden).mean()] if hidden else []
        wanted = self._outputs
        losses += [
            output_loss(name, given[name], wanted[name]) for name in wanted if name in given and len(wanted[name])
        ]
        return torch.stack(losses).sum() if losses else None


class Holder(nn.Module):
    """Calls a function with the model that it holds: so torch's ``functional_call`` reaches whatever runs it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        """Return what the function gives for the model."""
        return function(self.model)


def output_loss(name: str, given: Tensor, wanted: Tensor) -> Tensor:
    """Compare an output of the sparse model with that of the dense one, as its name says."""
    if SIMILARITY.search(name) and given.dim() == 2:
        return (divergence(given, wanted) + divergence(given.T, wanted.T)) / 2
    if LOGITS.search(name) and given.shape[-1] > 1:
        return divergence(given, wanted)
    return apart(given, wanted, None)


def divergence(given: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the last dimension from the dense one's, averaged over the others."""
    size = given.shape[-1]
    log_given, log_wanted = (x.float().reshape(-1, size).log_softmax(-1) for x in (given, wanted))
    return F.kl_div(log_given, log_wanted, log_target=True, reduction="batchmean")


def apart(given: Tensor, wanted: Tensor, weight: Tensor | None) -> Tensor:
    """Squared distance, as a share of the square of what is wanted."""
    difference, whole = (given.float() - wanted.float()).square(), wanted.float().square()
    if weight is not None:
        difference, whole = difference * weight, whole * weight
    return difference.sum() / whole.sum().clamp(min=torch.finfo(torch.float32).tiny)
