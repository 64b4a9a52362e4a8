"""Calibration: one pass over the batches, forward only, nothing stored but sums.

Every prunable layer's input is squared and summed over the real tokens as it passes by: within an input in float32,
over inputs and batches in float64. For ``input_moment`` it is the products of all pairs of features; one pass serves
both. A tensor that feeds several layers in a row (query, key, value) is measured once, and layers that have seen the
same inputs so far hold one sum together. A shared weight sums the inputs of every module that uses it, a layer used
twice in a forward those of both uses.
"""

from __future__ import annotations

import re
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multiflow.base.adapter import TokenMask, lay_mask
from multiflow.base.errors import MultiflowError
from multiflow.base.offload import check_readable, input_device, naming_missing, working_device
from multiflow.base.parallel import exchange
from multiflow.base.steps import Step
from multiflow.base.types import Layout, LiveWeights, is_hooked
from multiflow.calibration.batches import form, iterate, length, missing_keys_named, to_device, turns
from multiflow.calibration.inside import Inside, find_blocks
from multiflow.calibration.memory import announce, check_fits, free_memory
from multiflow.calibration.state import evaluating, watching
from multiflow.calibration.stats import Stats, check_start, sum_stats_
from multiflow.calibration.unreached import EARLY, check_groups_reached, never_reached, without_experts

TokenMasks = Mapping[str, TokenMask]
PADDING = re.compile(r"(^|_)(attention_mask|pixel_mask|padding_mask)$")
"""Names of what says in a batch which tokens are real."""
NORM, MEAN, MOMENT = "input_norm", "input_mean", "input_moment"
CHUNK = 128  # tokens squared at a time
BLOCK = 256  # features; of a wider product, which is symmetric, only the blocks on and above the diagonal are computed
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
    names: Sequence[str] = (NORM,),
    progress: Step | None = None,
    start: Stats | None = None,
    after_batch: Callable[[Stats], None] | None = None,
) -> Stats:
    """Measure ``input_norm``, ``input_mean``, ``input_moment`` or several of every layer in one pass over the batches.

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
    paths = {path: modules[path] for layer in layout.layers for path in layer.paths if is_hooked(path, modules)}
    watched = {id(module): path for path, module in reversed(paths.items())}
    device = input_device(model)
    streams = {path: stream(path) or stream(layer.module(path)) for layer in layout.layers for path in layer.paths}
    weights = LiveWeights(model, layout)
    check_readable(modules, weights)
    devices = {name: working_device(modules, layout[name].module(name), weight) for name, weight in weights.items()}
    check_sums_fit(layout, names, devices)
    total = length(batches)
    if start:
        widths = {layer.name: layer.shape[1] for layer in layout.layers}
        shapes = {name: {n: (width,) * (1 + (name == MOMENT)) for n, width in widths.items()} for name in names}
        check_start(start, shapes, total)
    sums = Sums(names, layout, devices, start)
    masks: TokenMasks = {}
    reached: set[str] = set()  # by the part of a batch that runs
    alike: dict[Any, frozenset[str]] = {}  # form of a part -> what the first one of this form reached
    uneven: dict[str, int] = {}  # what not all parts of a form reach, and the batch where it shows
    first = start.batches if start else 0

    def mask_of(path: str, value: Tensor) -> Tensor | None:
        of = streams[path]
        if of and of not in masks:
            raise MultiflowError(
                f"layer '{path}' follows stream '{of}', but token_masks gives {', '.join(masks) or 'nothing'}; "
                "let it give a mask for every stream, or None for one without padding"
            )
        return lay_mask(masks[of], path, value) if of else None

    def observe(path: str, value: Tensor) -> None:
        if not (inside and inside.busy):
            reached.add(path)
            sums.add(path, value, mask_of(path, value), streams[path])

    def real(path: str, value: Tensor, was_turned: bool) -> Tensor | None:
        mask = mask_of(path, value)
        if mask is None:
            return None
        of = streams[path]
        if was_turned and of and not callable(masks[of]):
            mask = _batch_first(path, value, mask)
        return real_places(path, value, mask, of).view(value.shape[:-1])

    inside = None  # of what hooks do not show
    if any(not is_hooked(path, modules) for layer in layout.layers for path in layer.paths):
        inside = Inside(
            find_blocks(modules, layout), lambda path, rows: sums.add(path, rows, None, streams[path]), real
        )
    padding, done = _Padding(), first
    hooked = watching({path: paths[path] for path in watched.values()}, observe)
    with evaluating(model), hooked, inside.watching() if inside else nullcontext(), torch.no_grad():
        for turn in turns(iterate(batches), first):
            done = turn.done
            for number, batch in turn.own:
                for part in split(to_device(batch, device)):
                    with missing_keys_named(part, number):
                        masks = token_masks(part) if token_masks else {}
                        padding.look(part, masks)
                        with naming_missing(model):
                            forward(model, part)
                    differ = alike.setdefault(form(part), frozenset(reached)) ^ reached
                    uneven = {**dict.fromkeys(differ, number), **uneven} if differ else uneven
                    reached.clear()
                sums.check(number)
                if number == 1 or number == EARLY:
                    sums.check_groups_reached(number)
            if after_batch:
                after_batch(sums.stats(done))
            if progress:
                progress("calibrate", done, total)
    if uneven:
        path = min(uneven, key=lambda one: (uneven[one], one))
        warnings.warn(
            f"{len(uneven)} of {len(watched)} layers are reached by some batches and not by others of the same form, "
            f"first '{path}' (batch {uneven[path]} differs): what is measured there comes from fewer tokens, as is "
            "right for experts that choose their tokens, and wrong for code that calls no hooks",
            stacklevel=2,
        )
    padding.warn()
    if inside:
        inside.check()
    return sums.finish(done)


class _Padding:
    """Counts the padding in masks that a batch carries and no stream declares."""

    def __init__(self) -> None:
        self._padded: dict[str, int] = {}
        self._tokens: dict[str, int] = {}

    def look(self, part: Any, masks: TokenMasks) -> None:
        if not isinstance(part, Mapping) or any(callable(mask) for mask in masks.values()):
            return
        for name, mask in part.items():
            if not isinstance(mask, Tensor) or mask.dim() != 2 or not PADDING.search(str(name)):
                continue
            real = mask.bool()
            declared = (m.bool() for m in masks.values() if isinstance(m, Tensor) and m.shape == real.shape)
            if any(torch.equal(m, real) for m in declared):
                continue
            self._padded[name] = self._padded.get(name, 0) + int((~real).sum())
            self._tokens[name] = self._tokens.get(name, 0) + real.numel()

    def warn(self) -> None:
        for name, padded in self._padded.items():
            if padded:
                warnings.warn(
                    f"{padded / self._tokens[name]:.0%} of the tokens are padding by the batches' '{name}', which no "
                    "stream declares: they counted as real; declare them with Adapter(streams={regex of module paths: "
                    f"'text'}}, token_masks=lambda batch: {{'text': batch['{name}'].bool()}})",
                    stacklevel=3,
                )


def sums_size(layout: Layout, names: Sequence[str]) -> int:
    """Return the bytes that the sums of these statistics take while they are measured, at most.

    Layers that read the same tensors hold one sum together, which shows only as the model runs. A sum is float64;
    beside those of all layers there is one float32 product for each width of input.
    """
    columns = [layer.shape[1] for layer in layout.layers]
    norms = sum(8 * width for width in columns) + sum((8 + 4 * CHUNK) * width for width in set(columns))
    moments = sum(8 * width**2 for width in columns) + sum(4 * width**2 for width in set(columns))
    means = sum(8 * width for width in columns) + sum(8 * width for width in set(columns))
    return (NORM in names) * norms + (MEAN in names) * means + (MOMENT in names) * moments


def check_sums_fit(layout: Layout, names: Sequence[str], devices: Mapping[str, torch.device]) -> None:
    """Announce the memory of the products before they are measured; more than a device has free is an error."""
    if MOMENT not in names:
        return
    what = f"{MOMENT} of {len(layout)} layers"
    advice = f"leave wide layers dense with Adapter(exclude=...), or take a pruner that needs no {MOMENT}"
    sizes = {
        device: sums_size(Layout(tuple(layer for layer in layout.layers if devices[layer.name] == device)), names)
        for device in dict.fromkeys(devices.values())
    }
    for device, size in sizes.items():
        check_fits(f"the sums for {what}", size, free_memory(device), advice)
    announce(f"calibration holds {what}", sum(sizes.values()))


class Sums:
    """Sums of squares, of products, of the values themselves, or several, of every layer's inputs.

    All that outlives a forward is allocated before the first one: small tensors kept between the large ones of a
    forward would pin the memory that those leave behind.

    Args:
        names: the statistics, ``input_norm``, ``input_mean`` and ``input_moment`` or some of them.
        layout: the layers to measure.
        devices: layer name -> where its sums are; inputs from elsewhere are moved there.
        start: statistics to go on from.
    """

    def __init__(
        self, names: Sequence[str], layout: Layout, devices: Mapping[str, torch.device], start: Stats | None = None
    ) -> None:
        places = {(layer.shape[1], devices[layer.name]) for layer in layout.layers}
        self._layout, self._devices = layout, devices
        self._layer = {path: layer.name for layer in layout.layers for path in layer.paths}
        self._counts = dict.fromkeys(layout, 0)
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._totals: dict[str, dict[tuple[int, torch.device], Tensor]] = {}  # of one input, by its width
        for name in names:
            order, dtype = (2, torch.float32) if name == MOMENT else (1, torch.float64)
            shapes = {layer.name: [layer.shape[1]] * order for layer in layout.layers}
            self._sums[name] = {n: zeros(shape, devices[n]) for n, shape in shapes.items()}
            self._totals[name] = {(w, at): torch.zeros([w] * order, dtype=dtype, device=at) for w, at in places}
        self._buffers = {w: torch.zeros(CHUNK, w) for w, at in places if NORM in names and at.type == "cpu"}
        self._takers: list[str] = []  # the layers that see the input measured last, to which it is still to be added
        # layers that hold sums together, by the number of their party; of zeros nothing is held yet
        self._party = {layer.name: list(places).index((layer.shape[1], devices[layer.name])) for layer in layout.layers}
        self._sizes = Counter(self._party.values())
        self._zeros, self._parties = len(places), len(places)
        if start:
            for name in names:
                for layer, total in start.sums[name].items():
                    self._sums[name][layer].copy_(total)
                self._counts.update(start.counts[name])
            self._find_alike()
        self._empty: set[str] = set()  # layers that saw an input without tokens
        self._padded: dict[str, str] = {}  # layers that saw a batch of padding alone, and its stream
        self._measured: list[str] = []  # the layers of one batch's measurements, in the order of the forward
        # which of them was the first with NaN or Inf
        self._bad = {at: torch.full((), NONE, device=at) for _, at in places}
        self._last: tuple[weakref.ref[Tensor] | None, int, Tensor | None, torch.device | None, int]
        self._last = (None, 0, None, None, 0)

    def add(self, path: str, value: Tensor, mask: Tensor | None, stream: str | None) -> None:
        """Add the squares, or products, of one input ``(..., in)`` over its real tokens."""
        layer = self._layer[path]
        if value.shape[-1] != self._layout[layer].shape[1]:
            return  # the layer itself is about to say so
        place = value.shape[-1], (device := self._devices[layer])
        version = -1 if value.is_inference() else value._version  # inference tensors do not say when they change
        before, at, under, on, count = self._last
        same = before is not None and before() is value and at == version >= 0 and under is mask and on == device
        if not same:
            self._give()
            tokens = _real_tokens(path, value, mask, stream).to(device)
            for name, totals in self._totals.items():
                self._measure(name, tokens, totals[place])
            count = len(tokens)
            self._last = (weakref.ref(value), version, mask, device, count)
            self._measured.append(layer)
        self._takers.append(layer)
        self._counts[layer] += count
        if not count and not value.numel():
            self._empty.add(layer)
        elif not count and stream:
            self._padded[layer] = stream

    def _give(self) -> None:
        """Add what was measured last to the sums of all layers that saw it, once for those that hold one together."""
        takers = Counter(self._takers)
        self._takers.clear()
        alike: dict[tuple[int, int], list[str]] = {}
        for layer, times in takers.items():
            alike.setdefault((self._party[layer], times), []).append(layer)
        for (party, times), layers in alike.items():
            if party < self._zeros or len(layers) < self._sizes[party]:
                self._part(layers, copy=party >= self._zeros)
            place = self._layout[layers[0]].shape[1], self._devices[layers[0]]
            for name, totals in self._totals.items():
                for _ in range(times):
                    self._sums[name][layers[0]] += totals[place]

    def _part(self, layers: Sequence[str], copy: bool) -> None:
        """Let some layers hold sums together, and apart from all others."""
        for of in self._sums.values():
            own = of[layers[0]].clone() if copy else of[layers[0]]
            of.update(dict.fromkeys(layers, own))
        self._sizes.subtract(self._party[layer] for layer in layers)
        self._sizes[self._parties] = len(layers)
        self._party.update(dict.fromkeys(layers, self._parties))
        self._parties += 1

    def _find_alike(self) -> None:
        """Let layers hold together what is the same already."""
        found: dict[Any, list[list[str]]] = {}
        for layer, party in self._party.items():
            own = [of[layer] for of in self._sums.values()]
            parties = found.setdefault((party, self._counts[layer], *(float(one.sum()) for one in own)), [])
            for other in parties:
                if all(torch.equal(of[other[0]], one) for of, one in zip(self._sums.values(), own, strict=True)):
                    other.append(layer)
                    break
            else:
                parties.append([layer])
        for parties in found.values():
            for layers in parties:
                self._part(layers, copy=False)

    def _measure(self, name: str, tokens: Tensor, total: Tensor) -> None:
        """Sum what a statistic sums of ``(tokens, in)`` into ``total``, and note whether it is finite."""
        if name == NORM:
            self._squares(tokens, total)
        elif name == MEAN:
            torch.sum(tokens, 0, dtype=torch.float64, out=total)
        else:
            products(tokens.float(), total)
        bad = self._bad[total.device]
        bad.copy_(torch.where(total.sum().isfinite(), bad, bad.clamp(max=len(self._measured))))

    def _squares(self, tokens: Tensor, total: Tensor) -> None:
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
        self._give()
        bad = min(map(int, self._bad.values()))
        if bad != NONE:
            raise MultiflowError(
                f"NaN or Inf in the input of layer '{self._measured[bad]}' in batch {batch}; check that batch's data, "
                "or run the model in float32 or bfloat16 if it overflows"
            )
        self._measured.clear()

    def check_groups_reached(self, batch: int) -> None:
        """Say early that a group saw nothing so far: a warning after the first batch, an error after some."""
        reached = {*self._padded, *(name for name, n in self._counts.items() if n)}
        if len(reached) < len(self._layout):
            check_groups_reached(self._layout, reached, batch)

    def stats(self, batches: int) -> Stats:
        """Give the statistics so far; layers that have seen the same inputs share the memory of their sums."""
        self._give()
        return Stats(
            {name: dict(of) for name, of in self._sums.items()},
            {name: dict(self._counts) for name in self._sums},
            batches,
        )

    def finish(self, batches: int) -> Stats:
        """Give the statistics of all processes; a layer without any observation is an error that names it."""
        stats = sum_stats_(self.stats(batches))
        counts = next(iter(stats.counts.values()))
        missed = [name for name in self._layout if not counts[name]]
        if missed:
            missed = without_experts(missed, self._layout, counts)
        streams = {name: stream for padded in exchange("padded", self._padded) for name, stream in padded.items()}
        padded = [name for name in missed if name in streams]
        if padded:
            raise MultiflowError(
                f"layer '{padded[0]}' saw nothing but padding: in every batch all tokens of its stream "
                f"'{streams[padded[0]]}' are masked; check the attention_mask, which has 1 for real tokens"
            )
        empty = set().union(*exchange("empty", self._empty))
        if nothing := [name for name in missed if name in empty]:
            raise MultiflowError(
                f"layer '{nothing[0]}' saw no tokens: all batches that reach it are empty, of size 0; give batches "
                "that hold samples"
            )
        if missed:
            raise never_reached(self._layout, missed)
        return stats


def zeros(shape: Sequence[int], device: torch.device) -> Tensor:
    """Make float64 zeros; on a CPU they take no memory before something is written."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape))
    return torch.zeros(*shape, dtype=torch.float64, device=device)


def products(tokens: Tensor, total: Tensor) -> None:
    """Write ``tokens.T @ tokens`` of ``(tokens, in)`` into ``total``, each pair of blocks once."""
    width = tokens.shape[1]
    for begin, end in pairwise([*range(0, width, BLOCK), width]):
        torch.mm(tokens[:, begin:end].T, tokens[:, begin:], out=total[begin:end, begin:])
        total[end:, begin:end] = total[begin:end, end:].T


def _real_tokens(path: str, value: Tensor, mask: Tensor | None, stream: str | None) -> Tensor:
    """View an input ``(..., in)`` as ``(tokens, in)``, without the padding."""
    tokens = value.detach().reshape(-1, value.shape[-1])
    return tokens if mask is None else tokens[real_places(path, value, mask, stream)]


def _batch_first(path: str, value: Tensor, mask: Tensor) -> Tensor:
    """Turn the mask of a model that puts the sequence first as its input was turned; either way it must be plain."""
    length, batch = value.shape[1], value.shape[0]
    if tuple(mask.shape) != (length, batch):
        return mask
    if length == batch and not torch.equal(mask, mask.T):
        raise MultiflowError(
            f"batch and sequence of the input of layer '{path}' are both {batch} long, so that nobody can tell which "
            "way round its token mask is; take batches of another size"
        )
    return mask.T


def real_places(path: str, value: Tensor, mask: Tensor, stream: str | None) -> Tensor:
    """Return which tokens ``(tokens,)`` of an input ``(..., in)`` are real; a mask that does not fit is an error."""
    # an input (tokens, in) has lost its batches; in any other the same number in another order is the wrong tokens
    if mask.shape != value.shape[:-1] if value.dim() > 2 else mask.numel() != value[..., 0].numel():
        raise MultiflowError(
            f"the input of layer '{path}' has shape {tuple(value.shape)}, but the token mask of its stream "
            f"'{stream}' has shape {tuple(mask.shape)}; set Adapter(streams=...) so that they fit, or let token_masks "
            f"give one of shape {tuple(value.shape[:-1])}"
        )
    return mask.reshape(-1).to(value.device, torch.bool)
