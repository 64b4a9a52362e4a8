"""`prune` and `calibrate`: from a model and a method to masks.

    layout -> statistics -> scores -> budgets -> masks

Everything is checked before anything is computed, and the model is never changed. This package is the one place that
knows adapters, calibration, pruners and masks: `plan` says what was asked for, `stages` holds the steps of this line,
and each kind of pruner has a runner: that of scorers is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from multiflow.base.adapter import Adapter, of_families, prunable_shares
from multiflow.base.errors import MultiflowError
from multiflow.base.guards import exclusively
from multiflow.base.parallel import agree, in_parallel, rank, together, world
from multiflow.base.steps import Watch, watched
from multiflow.base.types import Pattern
from multiflow.calibration import Checkpoint, Stats, announce, length
from multiflow.masks import Masks, hash_weight
from multiflow.pruning import fitter, learner, solver, stages
from multiflow.pruning.plan import PruningPlan, Weights, find_adapter, make_plan, request
from multiflow.pruning.result import Result
from multiflow.pruning.stable import HALF, calibrate_until_stable
from multiflow.pruning.stages import Outcome, Scores, choose
from multiflow.pruning.steps import PruningStep, State, prune_in_steps
from multiflow.pruning.unused import UNUSED, spare_unused


def _run_scorer(plan: PruningPlan) -> Outcome:
    """Give the masks of all sparsities, in one pass or, for a pruner in steps, each anew."""
    _check_scorer_memory(plan)
    if plan.pruner.stepwise:
        return prune_in_steps(plan, _score)
    begun = time.perf_counter()
    watched = None if plan.request.until_stable is None else calibrate_until_stable(plan)
    stats = watched.stats if watched else stages.statistics(plan)
    calibrated = time.perf_counter() - (watched.seconds if watched else 0.0)
    scores = Scores(plan, stats)
    packed = watched.packed if watched else choose(plan, scores, plan.sparsities, stats, plan.progress)
    timings = {"calibrate": calibrated - begun, "select": time.perf_counter() - calibrated}
    stages.forget(plan)
    if watched and plan.checkpoint:
        plan.checkpoint.part(HALF).delete()
    batches = [stats.batches if stats else 0] * len(packed)
    return Outcome(packed, batches, timings, scores=scores, stats=stats, curve=watched.curve if watched else None)


def _check_scorer_memory(plan: PruningPlan) -> None:
    """Announce the bytes that are held in the size of the model, if any; more than are free is an error."""
    pruner, weights = plan.pruner, plan.weights.parameters
    if "gradient" in pruner.statistics:
        if not isinstance(plan.batches, Stats):
            stages.check_gradient(pruner.name, weights)
    elif plan.ranks_all:
        stages.check_held(f"{pruner.name} ranks all layers together and holds their scores", weights, _score_size)
    if pruner.stepwise:
        announce(f"{pruner.name} works on a masked copy of the weights", sum(w.nbytes for w in weights.values()))


def _score_size(weight: Tensor) -> int:
    """The bytes of the scores of a weight: float32 or better."""
    return max(4, weight.element_size()) * weight.numel()


def _score(plan: PruningPlan, state: State, step: PruningStep) -> State:
    """Score the model as it is by now, and drop up to the target."""
    names = plan.pruner.statistics
    given = list(step.batches) if len(names) > 1 else step.batches
    found = [stages.measure(plan.model, plan.layout, given, plan.adapter, n, progress=step.progress) for n in names]
    scores = Scores(plan, Stats.join(found) if found else None)
    packed = choose(plan, state.frozen(scores), [step.target])[0]
    for name, bits in packed.items():
        if (bits & ~state.packed[name]).any():
            raise MultiflowError(
                f"at sparsity {step.target:g} the allocation drops fewer weights of layer '{name}' than a step before; "
                "in steps a layer can only lose more"
            )
    return State(packed, state.weights)


RUNNERS: Mapping[str, Callable[[PruningPlan], Outcome]] = {
    "scorer": _run_scorer,
    "fitter": fitter.run,
    "solver": solver.run,
    "learner": learner.run,
}
"""Kind of a pruner -> what runs it."""


@watched
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
    progress: Watch = None,
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
        progress: ``f(what, done, total)``, called as the work goes on; None shows bars where a person looks (a
            terminal, a notebook), False nothing.
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
    asked = request(method, sparsity, pattern=pattern, allocation=allocation, until_stable=until_stable, hyper=hyper)
    going: dict[str, Any] = {
        "seed": seed,
        "checkpoint": None if checkpoint is None else _checkpoint(checkpoint),
        "progress": (progress or None) if rank() == 0 else None,
    }
    plan = make_plan(asked, model, batches, adapter=adapter, **going)
    if plan.adapter.spares_unused and batches is not None:  # all is checked: a first look at the model as it runs
        found, batches = spare_unused(model, plan.adapter, batches)
        plan = make_plan(asked, model, batches, adapter=found, **going)
    if world() > 1:
        known = {**plan.record(length(batches) or 0), "sparsity": asked.sparsities}
        agree(stages.identity(plan.adapter, plan.layout, plan.weights, **known))
    out = RUNNERS[asked.pruner.kind](plan)
    masks = _masks(plan, out)
    shares = prunable_shares(model, plan.layout, plan.adapter.towers)
    unused = [name for name, why in plan.adapter.dense.items() if why == UNUSED]
    settings = {**plan.record(max(out.batches)), "sparsity": list(asked.sparsities), "prunable": shares}
    settings |= {"unused": unused} if unused else {}
    changed = None if out.weights is None else dict(zip(asked.sparsities, out.weights, strict=True))
    return Result(masks, changed, out.scores, out.stats, settings, out.timings, out.curve)


def _masks(plan: PruningPlan, found: Outcome) -> dict[float, Masks]:
    """Wrap packed masks, with a hash of the weights they are made for and how many batches each has taken."""
    hashed = in_parallel(lambda name: hash_weight(plan.weights.value(name)), plan.layout)
    hashes = dict(zip(plan.layout, hashed, strict=True))
    names = release_names(plan)
    return {
        s: Masks(plan.layout, packed, hashes, {**plan.record(batches), "sparsity": s}, names)
        for s, packed, batches in zip(plan.sparsities, found.packed, found.batches, strict=True)
    }


def release_names(plan: PruningPlan) -> dict[str, str]:
    """Layer name -> name in the original release; empty for models of no known release."""
    try:
        names = of_families("family:original_names")(plan.model)
    except MultiflowError:
        return {}
    return {name: names[name] for name in plan.layout if name in names}


def _checkpoint(given: str | Path | Checkpoint) -> Checkpoint:
    return given if isinstance(given, Checkpoint) else Checkpoint(given)


@watched
@together()
@exclusively("calibration")
def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    adapter: Adapter | None = None,
    statistics: str | Sequence[str] = ("input_norm",),
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Watch = None,
) -> Stats:
    """Measure statistics that several methods share: by default those of all activation-based ones, in one pass.

    The result can be given to `prune` in place of batches, for any number of methods and sparsities. ``gradient`` takes
    a pass of its own.

    Example:
        >>> stats = mf.calibrate(model, batches)                                                 # doctest: +SKIP
        >>> flow, wanda = (mf.prune(model, m, 0.75, stats) for m in ("multiflow", "wanda"))      # doctest: +SKIP
    """
    adapter = find_adapter(model, adapter)
    if adapter.spares_unused:
        adapter, batches = spare_unused(model, adapter, batches)  # type: ignore[assignment]
    names = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    place = None if checkpoint is None else _checkpoint(checkpoint)
    layout = adapter.layout(model)
    weights = Weights(model, layout)
    weights.check(in_memory="the gradient" if "gradient" in names else None)
    if world() > 1:
        agree(stages.identity(adapter, layout, weights, statistics=names, batches=length(batches) or 0))
    going: dict[str, Any] = {"checkpoint": place, "progress": (progress or None) if rank() == 0 else None}
    if "gradient" in names:
        stages.check_gradient("calibration", weights.parameters)
    stats = stages.calibrate(model, layout, batches, adapter, names, **going)
    if place:
        place.of_process().delete()
    return replace(stats, unused=tuple(name for name, why in adapter.dense.items() if why == UNUSED))
