"""Calibration: one pass over the batches, forward only, nothing stored but sums.

Every prunable layer's input is squared and summed over the real tokens as it passes by: O(in_features) memory a layer,
float64 sums. A tensor that feeds several layers (query, key and value) is measured once. A shared weight sums the inputs of
every module that uses it, a layer used twice in a forward those of both uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from multiflow.calibration.hooks import evaluating, watching
from multiflow.calibration.stats import Stats
from multiflow.errors import MultiflowError
from multiflow.types import Layout

TokenMasks = Mapping[str, Tensor]
Progress = Callable[[str, int, int | None], None]
"""``f(what, done, total)``, called after every step; ``total`` is None where it is not known."""

NAME = "input_norm"


def collect(
    model: nn.Module,
    layout: Layout,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    *,
    split: Callable[[Any], list[Any]],
    stream: Callable[[str], str | None],
    token_masks: Callable[[Any], TokenMasks] | None = None,
    progress: Progress | None = None,
    start: Stats | None = None,
    first: int = 0,
    after_batch: Callable[[int, Stats], None] | None = None,
) -> tuple[Stats, int]:
    """Measure ``input_norm`` of every layer over the batches.

    Args:
        model: runs in evaluation mode without gradients, and is left as it was.
        layout: the layers to measure.
        batches: moved to the model's device one by one.
        forward: ``f(model, part)`` for each part of a batch.
        split: splits a batch into its parts (a general and a region batch).
        stream: path -> stream whose padding mask the module's input follows.
        token_masks: ``f(part) -> {stream: bool (B, L)}``, True = a real token.
        progress: called after every batch.
        start, first: statistics of the ``first`` batches, which are skipped: how a run goes on.
        after_batch: called with the number of batches done and the statistics so far.

    Returns:
        The statistics and the number of batches they come from.

    Raises:
        MultiflowError: no batches, a layer that no forward reached, or NaN or Inf in a layer's input.
    """
    sums = _Sums(layout, start)
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = {path: modules[path] for layer in layout.layers for path in layer.paths}
    watched = {id(module): path for path, module in reversed(paths.items())}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    streams = {path: stream(path) for path in paths}
    masks: TokenMasks = {}

    def observe(path: str, value: Tensor) -> None:
        name = streams[path]
        sums.add(path, value, masks.get(name) if name else None, name)

    done = 0
    total = len(batches) if hasattr(batches, "__len__") else None  # type: ignore[arg-type]
    with evaluating(model), watching({path: paths[path] for path in watched.values()}, observe), torch.no_grad():
        for done, batch in enumerate(_checked(batches), start=1):
            if done <= first:
                continue
            for part in split(to_device(batch, device)):
                masks = token_masks(part) if token_masks else {}
                forward(model, part)
                sums.end_forward()
            sums.check(done)
            if after_batch:
                after_batch(done, sums.stats())
            if progress:
                progress("calibrate", done, total)
    if done == 0:
        raise MultiflowError(
            "there are no calibration batches: the data are empty, or a generator that was used up before; "
            "pass a list or another iterable that can be iterated again"
        )
    return sums.finish(), done


def to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of a batch, nested in mappings, lists and tuples, to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(to_device(item, device) for item in value)
    return value


def _checked(batches: Any) -> Iterator[Any]:
    if isinstance(batches, str | bytes) or isinstance(batches, Mapping | Tensor) or not isinstance(batches, Iterable):
        raise MultiflowError(
            f"batches is a {type(batches).__name__}; expected an iterable of batches, such as a list or a DataLoader"
        )
    return iter(batches)


class _Sums:
    """Sums of squares per module path, merged by layer at the end."""

    def __init__(self, layout: Layout, start: Stats | None) -> None:
        self._layout = layout
        self._layer = {path: layer.name for layer in layout.layers for path in layer.paths}
        self._sums = dict(start.sums[NAME]) if start else {}
        self._counts = dict(start.counts[NAME]) if start else {}
        self._seen: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def add(self, path: str, value: Tensor, mask: Tensor | None, stream: str | None) -> None:
        """Add the squares of one input ``(..., in)`` over its real tokens."""
        key = (stream, 0 if value.is_inference() else value._version)
        measured = self._seen.setdefault(value, {})
        if key not in measured:
            measured[key] = _sum_of_squares(path, value, mask, stream)
        total, count = measured[key]
        name = self._layer[path]
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts.get(name, 0) + count

    def end_forward(self) -> None:
        """Forget which tensors were measured: the next forward has others."""
        self._seen.clear()

    def check(self, batch: int) -> None:
        """Stop at the first batch whose inputs hold NaN or Inf, naming the first layer that saw it."""
        names = [name for name in self._layout if name in self._sums]
        if not names:
            return
        finite = torch.stack([self._sums[name].sum() for name in names]).isfinite()
        if not finite.all():
            layer = names[int((~finite).nonzero()[0])]
            raise MultiflowError(
                f"NaN or Inf in the input of layer '{layer}' in batch {batch}; check that batch's data, "
                "or run the model in float32 or bfloat16 if it overflows"
            )

    def stats(self) -> Stats:
        """Give the statistics so far."""
        return Stats({NAME: dict(self._sums)}, {NAME: dict(self._counts)})

    def finish(self) -> Stats:
        """Give the statistics; a layer without any observation is an error that names it."""
        missed = [name for name in self._layout if not self._counts.get(name)]
        if missed:
            raise MultiflowError(
                f"{len(missed)} of {len(self._layout)} layers were never reached by the forward, first '{missed[0]}'; "
                "run them in Adapter(forward=...) or leave them dense with Adapter(exclude=...)"
            )
        return Stats({NAME: {n: self._sums[n] for n in self._layout}}, {NAME: {n: self._counts[n] for n in self._layout}})


def _sum_of_squares(path: str, value: Tensor, mask: Tensor | None, stream: str | None) -> tuple[Tensor, int]:
    """Sum the squares of ``(..., in)`` over all tokens but the padding."""
    tokens = value.detach().reshape(-1, value.shape[-1])
    if mask is not None:
        if mask.numel() != len(tokens):
            raise MultiflowError(
                f"the input of layer '{path}' has shape {tuple(value.shape)}, but the token mask of its stream "
                f"'{stream}' has shape {tuple(mask.shape)}; set Adapter(streams=...) so that they fit"
            )
        tokens = tokens[mask.reshape(-1).bool()]
    return tokens.float().square().sum(0).double(), len(tokens)
