"""Calibration: one pass over the batches, forward only, nothing stored but sums.

Every prunable layer's input is squared and summed over the real tokens as it passes by: float64 sums, O(in_features)
memory a layer. For ``input_moment`` it is the products of all pairs of features: O(in_features^2). A tensor
that feeds several layers in a row (query, key, value) is measured once. A shared weight sums the inputs of every module
that uses it, a layer used twice in a forward those of both uses.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.calibration.hooks import evaluating, watching
from multiflow.calibration.stats import Stats, sum_stats_
from multiflow.calibration.turns import by_number, deal, turns
from multiflow.errors import MultiflowError
from multiflow.ranks import exchange
from multiflow.types import Layout

TokenMasks = Mapping[str, Tensor | None]
Progress = Callable[[str, int, int | None], None]
"""``f(what, done, total)``, called after every step; ``total`` is None where it is not known."""

NORM, MOMENT = "input_norm", "input_moment"
CHUNK = 128  # tokens squared at a time
NONE = 1 << 62


def collect(
    model: nn.Module,
    layout: Layout,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    *,
    split: Callable[[Any], list[Any]],
    stream: Callable[[str], str | None],
    token_masks: Callable[[Any], TokenMasks] | None = None,
    name: str = NORM,
    progress: Progress | None = None,
    start: Stats | None = None,
    after_batch: Callable[[Stats], None] | None = None,
) -> Stats:
    """Measure ``input_norm`` or ``input_moment`` of every layer over the batches.

    Args:
        model: runs in evaluation mode without gradients, and is left as it was.
        layout: the layers to measure.
        batches: moved to the model's device one by one; several processes share them out.
        forward: ``f(model, part)`` for each part of a batch.
        split: splits a batch into its parts (a general and a region batch).
        stream: path -> stream whose padding mask the module's input follows.
        token_masks: ``f(part) -> {stream: bool (B, L)}``, True = a real token.
        name: of the statistic.
        progress: called after every batch.
        start: statistics of the first ``start.batches`` batches, which are skipped: how a run goes on.
        after_batch: called with the statistics so far.

    Raises:
        MultiflowError: no batches, a layer that no forward reached, or NaN or Inf in a layer's input.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = {path: modules[path] for layer in layout.layers for path in layer.paths}
    watched = {id(module): path for path, module in reversed(paths.items())}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    streams = {path: stream(path) for path in paths}
    sums = _Sums(name, layout, device, start)
    masks: TokenMasks = {}
    first = start.batches if start else 0

    def observe(path: str, value: Tensor) -> None:
        of = streams[path]
        if of and of not in masks:
            raise MultiflowError(
                f"layer '{path}' follows stream '{of}', but token_masks gives {', '.join(masks) or 'nothing'}; "
                "let it give a mask for every stream, or None for one without padding"
            )
        sums.add(path, value, masks[of] if of else None, of)

    done = first
    total = length(batches)
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
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(to_device(item, device) for item in value)
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


class _Sums:
    """Sums of squares, or of products, of every layer's inputs.

    All that outlives a forward is allocated before the first one: small tensors kept between the large ones of a
    forward would pin the memory that those leave behind.
    """

    def __init__(self, name: str, layout: Layout, device: torch.device, start: Stats | None) -> None:
        self._name, self._layout = name, layout
        self._add = self._add_squares if name == NORM else self._add_products
        order = 1 if name == NORM else 2
        self._layer = {path: layer.name for layer in layout.layers for path in layer.paths}
        self._sums = {n: torch.zeros([layout[n].shape[1]] * order, dtype=torch.float64, device=device) for n in layout}
        self._counts = dict.fromkeys(layout, 0)
        if start:
            for layer, total in start.sums[name].items():
                self._sums[layer].copy_(total)
            self._counts.update(start.counts[name])
        widths, dtype = {layer.shape[1] for layer in layout.layers}, torch.float64 if name == NORM else torch.float32
        self._totals = {width: torch.zeros([width] * order, dtype=dtype, device=device) for width in widths}
        self._buffers = {width: torch.zeros(CHUNK, width, device=device) for width in widths}
        self._padded: dict[str, str] = {}  # layers that saw a batch of padding alone, and its stream
        self._measured: list[str] = []  # the layers of one batch's measurements, in the order of the forward
        self._bad = torch.full((), NONE, device=device)  # which of them was the first with NaN or Inf
        self._last: tuple[weakref.ref[Tensor] | None, int, Tensor | None, int] = (None, 0, None, 0)

    def add(self, path: str, value: Tensor, mask: Tensor | None, stream: str | None) -> None:
        """Add the squares of one input ``(..., in)`` over its real tokens."""
        name = self._layer[path]
        version = -1 if value.is_inference() else value._version  # inference tensors do not say when they change
        before, at, under, count = self._last
        total = self._totals[value.shape[-1]]
        if before is None or before() is not value or version < 0 or at != version or under is not mask:
            tokens = _real_tokens(path, value, mask, stream)
            self._add(tokens, total)
            count = len(tokens)
            self._last = (weakref.ref(value), version, mask, count)
            self._bad.copy_(torch.where(total.sum().isfinite(), self._bad, self._bad.clamp(max=len(self._measured))))
            self._measured.append(name)
        self._sums[name] += total
        self._counts[name] += count
        if stream and not count:
            self._padded[name] = stream

    def _add_products(self, tokens: Tensor, total: Tensor) -> None:
        """Sum the products of all pairs of features of ``(tokens, in)`` into ``total``."""
        tokens = tokens.float()
        torch.mm(tokens.T, tokens, out=total)

    def _add_squares(self, tokens: Tensor, total: Tensor) -> None:
        """Sum the squares of ``(tokens, in)`` into ``total``."""
        if tokens.device.type != "cpu":
            total.copy_(torch.linalg.vector_norm(tokens, dim=0, dtype=torch.float32).square())
            return
        # some tokens at a time into a buffer that stays in the cache: no copy of the input is made
        buffer = self._buffers[tokens.shape[1]].zero_()
        for chunk in tokens.split(CHUNK):
            chunk = chunk.float()
            buffer[: len(chunk)].addcmul_(chunk, chunk)
        torch.sum(buffer, 0, dtype=torch.float64, out=total)

    def check(self, batch: int) -> None:
        """Stop at the first batch whose inputs hold NaN or Inf, naming the first layer that saw it."""
        bad = int(self._bad)
        if bad != NONE:
            raise MultiflowError(
                f"NaN or Inf in the input of layer '{self._measured[bad]}' in batch {batch}; check that batch's data, "
                "or run the model in float32 or bfloat16 if it overflows"
            )
        self._measured.clear()

    def stats(self, batches: int) -> Stats:
        """Give the statistics so far."""
        return Stats({self._name: dict(self._sums)}, {self._name: dict(self._counts)}, batches)

    def finish(self, batches: int) -> Stats:
        """Give the statistics of all processes; a layer without any observation is an error that names it."""
        stats = sum_stats_(self.stats(batches))
        missed = [name for name in self._layout if not stats.counts[self._name][name]]
        streams = {name: stream for padded in exchange("padded", self._padded) for name, stream in padded.items()}
        padded = [name for name in missed if name in streams]
        if padded:
            raise MultiflowError(
                f"layer '{padded[0]}' saw nothing but padding: in every batch all tokens of its stream "
                f"'{streams[padded[0]]}' are masked; check the attention_mask, which has 1 for real tokens"
            )
        if missed:
            raise MultiflowError(
                f"{len(missed)} of {len(self._layout)} layers were never reached by the forward, first '{missed[0]}'; "
                "run them in Adapter(forward=...) or leave them dense with Adapter(exclude=...)"
            )
        return stats


def _real_tokens(path: str, value: Tensor, mask: Tensor | None, stream: str | None) -> Tensor:
    """View an input ``(..., in)`` as ``(tokens, in)``, without the padding."""
    tokens = value.detach().reshape(-1, value.shape[-1])
    if mask is None:
        return tokens
    if mask.numel() != len(tokens):
        raise MultiflowError(
            f"the input of layer '{path}' has shape {tuple(value.shape)}, but the token mask of its stream "
            f"'{stream}' has shape {tuple(mask.shape)}; set Adapter(streams=...) so that they fit"
        )
    return tokens[mask.reshape(-1).bool()]
