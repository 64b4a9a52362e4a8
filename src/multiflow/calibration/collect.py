"""Calibration: one pass over the batches, forward only, nothing stored but sums.

Every prunable layer's input is squared and summed over the real tokens as it passes by: within an input in float32,
over inputs and batches in float64. For ``input_moment`` it is the products of all pairs of features; one pass serves
both. A tensor that feeds several layers in a row (query, key, value) is measured once. A shared weight sums the inputs
of every module that uses it, a layer used twice in a forward those of both uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import TokenMask, lay_mask
from multiflow.base.errors import MultiflowError
from multiflow.base.guards import check_values
from multiflow.base.types import Layout
from multiflow.calibration.hooks import evaluating, watching
from multiflow.calibration.stats import Stats, check_start
from multiflow.calibration.sums import MOMENT, NORM, Sums, check_sums_fit
from multiflow.calibration.turns import by_number, deal, turns

TokenMasks = Mapping[str, TokenMask]
Progress = Callable[[str, int, int | None], None]
"""``f(what, done, total)``, called after every step; ``total`` is None where it is not known."""


def collect(
    model: nn.Module,
    layout: Layout,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    *,
    split: Callable[[Any], list[Any]],
    stream: Callable[[str], str | None],
    token_masks: Callable[[Any], TokenMasks] | None = None,
    names: Sequence[str] = (NORM,),
    progress: Progress | None = None,
    start: Stats | None = None,
    after_batch: Callable[[Stats], None] | None = None,
) -> Stats:
    """Measure ``input_norm``, ``input_moment`` or both of every layer in one pass over the batches.

    Args:
        model: runs in evaluation mode without gradients, and is left as it was.
        layout: the layers to measure.
        batches: moved to the model's device one by one; several processes share them out.
        forward: ``f(model, part)`` for each part of a batch.
        split: splits a batch into its parts (a general and a region batch).
        stream: path -> stream whose padding mask the module's input follows.
        token_masks: ``f(part) -> {stream: bool (B, L)}``, True = a real token.
        names: of the statistics.
        progress: called after every batch.
        start: statistics of the first ``start.batches`` batches, which are skipped: how a run goes on.
        after_batch: called with the statistics so far.

    Raises:
        MultiflowError: no batches, a layer that no forward reached, NaN or Inf in a layer's input, or less memory than
            the sums take.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = {path: modules[path] for layer in layout.layers for path in layer.paths}
    watched = {id(module): path for path, module in reversed(paths.items())}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    streams = {path: stream(path) for path in paths}
    weights = {name: paths[name].weight for name in layout}
    check_values(weights)
    devices = {name: weight.device for name, weight in weights.items()}
    check_sums_fit(layout, names, devices)
    total = length(batches)
    if start:
        widths = {layer.name: layer.shape[1] for layer in layout.layers}
        shapes = {name: {n: (width,) * (1 + (name == MOMENT)) for n, width in widths.items()} for name in names}
        check_start(start, shapes, total)
    sums = Sums(names, layout, devices, start)
    masks: TokenMasks = {}
    first = start.batches if start else 0

    def observe(path: str, value: Tensor) -> None:
        of = streams[path]
        if of and of not in masks:
            raise MultiflowError(
                f"layer '{path}' follows stream '{of}', but token_masks gives {', '.join(masks) or 'nothing'}; "
                "let it give a mask for every stream, or None for one without padding"
            )
        sums.add(path, value, lay_mask(masks[of], path, value) if of else None, of)

    done = first
    with evaluating(model), watching({path: paths[path] for path in watched.values()}, observe), torch.no_grad():
        for turn in turns(iterate(batches), first):
            done = turn.done
            for number, batch in turn.own:
                for part in split(to_device(batch, device)):
                    with missing_keys_named(part, number):
                        masks = token_masks(part) if token_masks else {}
                        forward(model, part)
                sums.check(number)
            if after_batch:
                after_batch(sums.stats(done))
            if progress:
                progress("calibrate", done, total)
    return sums.finish(done)


def to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of a batch, nested in mappings, lists and tuples, to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        moved = (to_device(item, device) for item in value)
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    return value


@contextmanager
def missing_keys_named(part: Any, batch: int) -> Iterator[None]:
    """Turn the KeyError of a batch that lacks a key into a sentence that names both; number what is said of a batch."""
    try:
        yield
    except MultiflowError as error:
        said, numbered = str(error), re.sub(r"^(a|the) batch\b", f"batch {batch}", str(error))
        if numbered == said:
            raise
        raise type(error)(numbered) from error
    except KeyError as error:
        key = error.args[0] if error.args else None
        if not isinstance(part, Mapping) or key in part:
            raise
        has = ", ".join(map(str, part)) or "nothing"
        raise MultiflowError(f"batch {batch} has no '{key}', which the adapter needs; it has: {has}") from error


def length(batches: Any) -> int | None:
    """How many batches there are, where that is known (a loader of a stream has a ``__len__`` that fails)."""
    try:
        return len(batches)
    except TypeError:
        return None


def iterate(batches: Any) -> Iterator[Any]:
    """Iterate over batches, or say that this is no iterable of batches."""
    if isinstance(batches, str | bytes | Mapping | Tensor) or not isinstance(batches, Iterable):
        raise MultiflowError(
            f"batches is a {type(batches).__name__}; expected an iterable of batches, such as a list or a DataLoader"
        )
    if by_number(batches):
        total = len(batches)  # type: ignore[arg-type]
        return islice(deal(batches, total), total)
    return iter(batches)
