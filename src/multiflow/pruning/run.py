"""From a model and a method to masks.

    layout -> statistics -> scores -> budgets -> masks

Everything is checked before anything is computed, and the model is never changed. This package is the one place that
knows adapters, calibration, pruners, allocation and masks: `job` says what was asked for, `measure` brings statistics,
`choose` makes masks of scores, `steps` and `learn` run the methods that look at the model more than once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from multiflow.base.adapter import Adapter, of_families
from multiflow.base.errors import MultiflowError
from multiflow.base.guards import check_device, check_values, exclusively
from multiflow.base.parallel import in_parallel
from multiflow.base.ranks import agree, rank, together, world
from multiflow.base.types import Pattern, parse_pattern
from multiflow.calibration import Checkpoint, Progress, Stats, length
from multiflow.masks import Masks, hash_weight
from multiflow.methods import find_pruner
from multiflow.pruning import measure
from multiflow.pruning.choose import Packed, Pruned, choose
from multiflow.pruning.fit import check_memory, fit_layers
from multiflow.pruning.job import Job, check_job, check_sparsities, choose_allocation, find_adapter
from multiflow.pruning.learn import prune_by_learning
from multiflow.pruning.memory import check_gradient, check_held
from multiflow.pruning.result import Result, Scores, Weights
from multiflow.pruning.stable import HALF, calibrate_until_stable, check_until_stable
from multiflow.pruning.steps import prune_in_steps


@together()
@exclusively("pruning")
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
    until_stable: float | None = None,
    **hyper: Any,
) -> Result:
    """Decide which weights of a model go, at one or several sparsities; the model itself is left as it is.

    Args:
        model: any ``nn.Module``; known families need no adapter.
        method: a name of `list_pruners`, or a function decorated with `scorer`, `fitter`, `solver` or `learner`.
        sparsity: share of the prunable weights to drop, in [0, 1), or several; 0.63, 0.75 and 0.9 if left out (for an
            N:M pattern the sparsity it means). All are made from one calibration pass, except by methods that prune
            in steps or learn.
        batches: any iterable of calibration batches, or the `Stats` of an earlier `calibrate`. Data-free methods
            need none; a method in steps takes ``batches_per_step`` after ``batches_per_step``, and starts over when
            they are spent.
        adapter: how to run the model and which layers to prune; needed for models of no known family.
        pattern: None for the method's own, ``"unstructured"``, ``"per-row"``, ``"2:4"`` or a `Pattern`.
        allocation: None for the method's own, ``"global"``, ``"uniform"``, ``"multimodal"``, or your function
            ``f(layout, sparsity) -> {layer name: number of weights to drop}``. A pattern given without an allocation
            means the same sparsity in every layer.
        seed: seed of whatever is random.
        checkpoint: file (or `Checkpoint`) that lets a killed calibration go on; same settings, same file.
        progress: ``f(what, done, total)``, called as the work goes on.
        until_stable: stop taking batches when, at every sparsity, this share of the kept weights (0.995, say) is what
            half of the data keeps too; checked after 2, 4, 8, ... batches, see ``result.curve``. For methods that
            need data and one pass.
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
    settings = pruner.settings(hyper)
    kind = pruner.pattern if pattern is None else parse_pattern(pattern)
    sparsities = check_sparsities(sparsity, kind)
    share = choose_allocation(pruner, settings, kind, allocation, own_pattern=pattern is None)
    check_until_stable(until_stable, pruner, batches)
    adapter = find_adapter(model, adapter)
    layout = adapter.layout(model)
    place = None if checkpoint is None else _checkpoint(checkpoint)
    weights = Weights(model, layout)
    progress = progress if rank() == 0 else None
    plan = (model, adapter, layout, weights, pruner, settings, kind, share, sparsities, seed, batches, place, progress)
    job = check_job(Job(*plan, until_stable))
    if world() > 1:
        known = {**job.record(length(batches) or 0), "sparsity": sparsities}
        agree(measure.identity(adapter, layout, weights, **known))
    check_held(job)
    return _once(job) if pruner.one_pass else _again_and_again(job)


def _once(job: Job) -> Result:
    """Prune with statistics measured once for all sparsities."""
    begun = time.perf_counter()
    watched = None if job.until_stable is None else calibrate_until_stable(job)
    stats = watched.stats if watched else measure.statistics(job)
    calibrated = time.perf_counter() - (watched.seconds if watched else 0.0)
    scores = Scores(job.pruner, job.weights, stats, job.own_hyper, job.seed)
    packed = watched.packed if watched else choose(job, scores, job.sparsities, job.progress)
    masks = _masks(job, packed, [stats.batches if stats else 0] * len(packed))
    timings = {"calibrate": calibrated - begun, "select": time.perf_counter() - calibrated}
    settings = _settings(job, stats.batches if stats else 0)
    _forget(job)
    return Result(masks, None, scores, stats, settings, timings, watched.curve if watched else None)


def _again_and_again(job: Job) -> Result:
    """Prune with a method that runs the model anew for every sparsity."""
    begun = time.perf_counter()
    changed: dict[float, Mapping[str, Tensor]] = {}
    packed, batches = [], []
    runs: Iterator[Pruned]
    stats = None
    if job.pruner.kind == "fitter":
        check_memory(job)
        stats = measure.statistics(job)
        runs = fit_layers(job, stats)
    else:
        runs = prune_by_learning(job) if job.pruner.kind == "learner" else prune_in_steps(job)
    for sparsity, pruned in zip(job.sparsities, runs, strict=True):
        packed.append(pruned.packed)
        batches.append(pruned.batches)
        if pruned.weights is not None:
            changed[sparsity] = {n: w.to("cpu", job.weights.parameters[n].dtype) for n, w in pruned.weights.items()}
    timings = {"steps": time.perf_counter() - begun}
    masks, settings = _masks(job, packed, batches), _settings(job, max(batches))
    _forget(job)
    return Result(masks, changed or None, None, stats, settings, timings)


def _masks(job: Job, packed: Sequence[Packed], batches: Sequence[int]) -> dict[float, Masks]:
    """Wrap packed masks, with a hash of the weights they are made for and how many batches each has taken."""
    hashed = in_parallel(hash_weight, job.weights.parameters.values())
    hashes = dict(zip(job.layout, hashed, strict=True))
    names = _names(job)
    return {
        s: Masks(job.layout, masks, hashes, {**job.record(number), "sparsity": s}, names)
        for s, masks, number in zip(job.sparsities, packed, batches, strict=True)
    }


def _names(job: Job) -> dict[str, str]:
    """Layer name -> name in the original release; empty for models of no known release."""
    try:
        names = of_families("original_names")(job.model)
    except MultiflowError:
        return {}
    return {name: names[name] for name in job.layout if name in names}


def _settings(job: Job, batches: int) -> dict[str, Any]:
    return {**job.record(batches), "sparsity": list(job.sparsities)}


def _forget(job: Job) -> None:
    """Delete the checkpoint of a calibration, once there are masks: scoring may fail too."""
    if job.checkpoint and job.pruner.statistics and not isinstance(job.batches, Stats) and not job.pruner.stepwise:
        job.checkpoint.of_process().delete()
        if job.until_stable is not None:
            job.checkpoint.part(HALF).delete()


def _checkpoint(given: str | Path | Checkpoint) -> Checkpoint:
    return given if isinstance(given, Checkpoint) else Checkpoint(given)


@together()
@exclusively("calibration")
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    adapter: Adapter | None = None,
    statistics: str | Sequence[str] = ("input_norm",),
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> Stats:
    """Measure statistics that several methods share: by default those of all activation-based ones, in one pass.

    The result can be given to `prune` in place of batches, for any number of methods and sparsities. ``gradient`` takes
    a pass of its own.

    Example:
        >>> stats = mf.calibrate(model, batches)                                                 # doctest: +SKIP
        >>> flow, wanda = (mf.prune(model, m, 0.75, stats) for m in ("multiflow", "wanda"))      # doctest: +SKIP
    """
    adapter = find_adapter(model, adapter)
    names = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    place = None if checkpoint is None else _checkpoint(checkpoint)
    layout = adapter.layout(model)
    weights = Weights(model, layout)
    check_values(weights.parameters)
    check_device(weights.parameters)
    if world() > 1:
        agree(measure.identity(adapter, layout, weights, statistics=names, batches=length(batches) or 0))
    going: dict[str, Any] = {"checkpoint": place, "progress": progress if rank() == 0 else None}
    if "gradient" in names:
        check_gradient("calibration", weights.parameters)
    stats = measure.calibrate(model, layout, batches, adapter, names, **going)
    if place:
        place.of_process().delete()
    return stats
