"""From a model and a method to masks: the one file that knows adapters, calibration, pruners, allocation and masks.

    layout -> statistics -> scores -> budgets -> masks

Everything is checked before anything is computed, and the model is never changed.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from multiflow.adapters import Adapter, adapter_for, parts
from multiflow.allocation import check_pattern, find_allocation, fit_budget, pattern_budget
from multiflow.calibration import STATISTICS, Checkpoint, Progress, Stats, collect, mean_gradient
from multiflow.errors import MultiflowError
from multiflow.masks import Masks, hash_weight, pack, select
from multiflow.parallel import in_parallel
from multiflow.pruners import Pruner, find_pruner
from multiflow.result import Result, Scores, Weights, versions
from multiflow.types import Budget, Layout, NofM, Pattern, PerRow, parse_pattern

Share = str | Callable[..., Mapping[str, int]]

SPARSITIES = (0.63, 0.75, 0.9)
"""The sparsities of the paper, used when none are given."""


def prune(
    model: nn.Module,
    method: str | Callable[..., Tensor] = "multiflow",
    sparsity: float | Sequence[float] | None = None,
    batches: Iterable[Any] | Stats | None = None,
    *,
    adapter: Adapter | None = None,
    pattern: str | Pattern | None = None,
    allocation: str | Callable[..., Mapping[str, int]] | None = None,
    seed: int = 0,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
    **hyper: Any,
) -> Result:
    """Decide which weights of a model go, at one or several sparsities; the model itself is left as it is.

    Args:
        model: any ``nn.Module``; known families need no adapter.
        method: a name of `list_pruners`, or a function decorated with `scorer`.
        sparsity: share of the prunable weights to drop, in [0, 1), or several; 0.63, 0.75 and 0.9 if left out (for an
            N:M pattern the sparsity it means). All are made from one calibration pass.
        batches: any iterable of calibration batches, or the `Stats` of an earlier `calibrate`. Data-free methods
            need none.
        adapter: how to run the model and which layers to prune; needed for models of no known family.
        pattern: None for the method's own, ``"unstructured"``, ``"per-row"``, ``"2:4"`` or a `Pattern`.
        allocation: None for the method's own, ``"global"``, ``"uniform"``, ``"multimodal"``, or your function
            ``f(layout, sparsity) -> {layer name: number of weights to drop}``. A pattern given without an allocation
            means the same sparsity in every layer.
        seed: seed of whatever is random.
        checkpoint: file (or `Checkpoint`) that lets a killed calibration go on; same settings, same file.
        progress: ``f(what, done, total)``, called as the work goes on.
        **hyper: hyper-parameters of the method, such as ``alpha`` of RIA.

    Returns:
        A `Result`: ``result.masks[0.75]`` are the masks at 75 %.

    Raises:
        MultiflowError: bad input, in one sentence that says how to fix it.

    Example:
        >>> result = mf.prune(model, "multiflow", sparsity=[0.63, 0.75], batches=batches)       # doctest: +SKIP
        >>> result.apply_(model, 0.75)                                                           # doctest: +SKIP
    """
    pruner = find_pruner(method)
    hyper = pruner.settings(hyper)
    kind = pruner.pattern if pattern is None else parse_pattern(pattern)
    sparsities = check_sparsities(sparsity, kind)
    share = _choose_allocation(pruner, kind, allocation, own_pattern=pattern is None)
    adapter = _adapter(model, adapter)
    layout = adapter.layout(model)
    check_pattern(kind, layout)

    begun = time.perf_counter()
    stats = _statistics(model, layout, pruner, batches, adapter, checkpoint, progress)
    calibrated = time.perf_counter()
    record = {
        "method": pruner.name,
        "hyper": hyper,
        "pattern": str(kind),
        "allocation": share if isinstance(share, str) else getattr(share, "__name__", "custom"),
        "seed": seed,
        "batches": stats.batches if stats else 0,
        "adapter": adapter.name,
        "model": type(model).__name__,
        "versions": versions(),
    }
    weights = Weights(model, layout)
    scores = Scores(pruner, weights, stats, hyper, seed)
    # a global ranking looks at all scores several times: then, and only then, they are held
    ranked: Mapping[str, Tensor] = dict(scores) if share == "global" else scores
    budgets = _budgets(layout, sparsities, weights, ranked, share, kind)
    packed, hashes = _make_masks(layout, ranked, budgets, kind, weights, progress)
    masks = {s: Masks(layout, packed[i], hashes, {**record, "sparsity": s}) for i, s in enumerate(sparsities)}
    timings = {"calibrate": calibrated - begun, "select": time.perf_counter() - calibrated}
    return Result(masks, None, scores, stats, {**record, "sparsity": list(sparsities)}, timings)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    adapter: Adapter | None = None,
    statistics: Sequence[str] = ("input_norm",),
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> Stats:
    """Measure statistics that several methods share: by default those of all activation-based ones, in one pass.

    The result can be given to `prune` in place of batches, for any number of methods and sparsities.

    Example:
        >>> stats = mf.calibrate(model, batches)                                                 # doctest: +SKIP
        >>> flow, wanda = (mf.prune(model, m, 0.75, stats) for m in ("multiflow", "wanda"))      # doctest: +SKIP
    """
    adapter = _adapter(model, adapter)
    return _calibrate(model, adapter.layout(model), batches, adapter, statistics, checkpoint, progress)


def check_sparsities(sparsity: float | Sequence[float] | None, pattern: Pattern) -> tuple[float, ...]:
    """Return the sparsities asked for, each in [0, 1) and, for an N:M pattern, the one that it means."""
    if sparsity is None:
        return (pattern.sparsity,) if isinstance(pattern, NofM) else SPARSITIES
    several = isinstance(sparsity, Sequence | np.ndarray) and not isinstance(sparsity, str)
    given: tuple[Any, ...] = tuple(sparsity) if several else (sparsity,)  # type: ignore[arg-type]
    if not given:
        raise MultiflowError("sparsity is an empty list; give at least one share of zeros, such as 0.75")
    for s in given:
        if isinstance(s, bool | str) or not isinstance(s, int | float | np.floating) or not 0 <= s < 1:
            percent = f"; did you mean {s / 100:g}?" if isinstance(s, int | float) and 1 < s < 100 else ""
            raise MultiflowError(
                f"sparsity {s!r} is not in [0, 1); it is the share of weights to drop, such as 0.75{percent}"
            )
        if isinstance(pattern, NofM) and not math.isclose(s, pattern.sparsity, abs_tol=1e-3):
            raise MultiflowError(
                f"pattern '{pattern}' means sparsity {pattern.sparsity:g}, not {s:g}; leave sparsity out"
            )
    return tuple(dict.fromkeys(map(float, given)))


def _adapter(model: nn.Module, given: Adapter | None) -> Adapter:
    if given is not None and not isinstance(given, Adapter):
        raise MultiflowError(f"adapter is a {type(given).__name__}; expected an mf.Adapter(groups={{...}})")
    return given or adapter_for(model)


def _choose_allocation(pruner: Pruner, kind: Pattern, given: Share | None, *, own_pattern: bool) -> Share:
    """Give the allocation asked for, the method's own, or ``uniform`` under a pattern that fixes the budgets."""
    if given is not None:
        find_allocation(given)
        if isinstance(kind, NofM) and given != "uniform":
            raise MultiflowError(f"pattern '{kind}' fixes the budget of every layer; leave allocation={given!r} out")
        return given
    fixed = isinstance(kind, NofM) or (isinstance(kind, PerRow) and not own_pattern)
    return "uniform" if fixed else pruner.allocation


def _statistics(
    model: nn.Module,
    layout: Layout,
    pruner: Pruner,
    batches: Iterable[Any] | Stats | None,
    adapter: Adapter,
    checkpoint: str | Path | Checkpoint | None,
    progress: Progress | None,
) -> Stats | None:
    """Measure, or take over, the statistics that a pruner needs; none for a data-free one."""
    for name in pruner.statistics:
        if name not in STATISTICS:
            raise MultiflowError(
                f"pruner '{pruner.name}' needs '{name}', which is no statistic; there are: {', '.join(STATISTICS)} "
                "(a hyper-parameter needs a default)"
            )
    if not pruner.statistics:
        return None
    if batches is None:
        raise MultiflowError(f"pruner '{pruner.name}' needs calibration data; pass batches=, an iterable of batches")
    if not isinstance(batches, Stats):
        return _calibrate(model, layout, batches, adapter, pruner.statistics, checkpoint, progress)
    for name in pruner.statistics:
        for layer in layout:
            if layer not in batches.sums.get(name, {}):
                raise MultiflowError(f"the statistics given have no '{name}' of layer '{layer}'; calibrate this model")
            rows, inputs = layout[layer].shape
            if (given := tuple(batches.sums[name][layer].shape)) not in [(inputs,), (rows, inputs)]:
                raise MultiflowError(
                    f"the statistics given are of another model: '{name}' of layer '{layer}' has shape {given}, "
                    f"the layer {(rows, inputs)}"
                )
    return batches


def _calibrate(
    model: nn.Module,
    layout: Layout,
    batches: Iterable[Any],
    adapter: Adapter,
    statistics: Sequence[str],
    checkpoint: str | Path | Checkpoint | None,
    progress: Progress | None,
) -> Stats:
    """Measure statistics: forward only for that of the inputs, forward and backward for gradients."""
    if len(statistics) > 1:
        if checkpoint is not None:
            raise MultiflowError(f"a checkpoint holds one statistic, not {', '.join(statistics)}; leave checkpoint out")
        found = [_calibrate(model, layout, batches, adapter, [name], None, progress) for name in statistics]
        return Stats.join(found)
    weights = Weights(model, layout).parameters
    place = checkpoint if isinstance(checkpoint, Checkpoint) or checkpoint is None else Checkpoint(checkpoint)
    settings = {
        "adapter": adapter.name,
        "statistic": statistics[0],
        "layers": len(layout),
        "weights": layout.size,
        **versions(),
    }
    if place:
        hashes = list(in_parallel(hash_weight, weights.values()))
        settings["weights_hash"] = hashlib.sha256(repr((layout.layers, hashes)).encode()).hexdigest()[:16]
    progressing: dict[str, Any] = {
        "progress": progress,
        "start": place.load(settings) if place else None,
        "after_batch": (lambda stats: place.save(stats, settings)) if place else None,
    }
    if statistics[0] == "gradient":
        if adapter.loss is None:
            raise MultiflowError(f"adapter '{adapter.name}' has no loss, which gradients need; pass Adapter(loss=...)")
        stats = mean_gradient(model, weights, batches, adapter.loss, **progressing)
    else:
        stats = collect(
            model,
            layout,
            batches,
            adapter.forward,
            split=parts,
            stream=adapter.stream,
            token_masks=adapter.token_masks,
            **progressing,
        )
    if place:
        place.delete()
    return stats


def _budgets(
    layout: Layout,
    sparsities: Sequence[float],
    weights: Weights,
    scores: Mapping[str, Tensor],
    share: Share,
    kind: Pattern,
) -> list[Budget]:
    """Decide how many weights each layer drops, for each sparsity."""
    if isinstance(kind, PerRow | NofM) and share == "uniform":
        return [pattern_budget(layout, s, kind) for s in sparsities]
    budgets = find_allocation(share)(layout, sparsities, weights, scores)
    return [fit_budget(budget, layout) for budget in budgets] if isinstance(kind, PerRow) else budgets


def _make_masks(
    layout: Layout,
    scores: Mapping[str, Tensor],
    budgets: Sequence[Budget],
    kind: Pattern,
    weights: Weights,
    progress: Progress | None,
) -> tuple[list[dict[str, np.ndarray]], dict[str, str]]:
    """Select and pack the masks of all sparsities layer by layer, and hash the weights they are made for."""

    def make(name: str) -> tuple[list[np.ndarray], str]:
        kept = select(scores[name], [budget[name] for budget in budgets], kind)
        return [pack(mask) for mask in kept], hash_weight(weights.parameters[name])

    packed: list[dict[str, np.ndarray]] = [{} for _ in budgets]
    hashes = {}
    for done, (name, (masks, hashes[name])) in enumerate(zip(layout, in_parallel(make, layout), strict=True), start=1):
        for of, mask in zip(packed, masks, strict=True):
            of[name] = mask
        if progress:
            progress("select", done, len(layout))
    return packed, hashes
