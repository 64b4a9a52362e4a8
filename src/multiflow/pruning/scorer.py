"""Running a scorer: statistics once for all sparsities, then scores, budgets and masks; or the same in steps."""

from __future__ import annotations

import time

from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.calibration import Stats, announce
from multiflow.pruning import measure
from multiflow.pruning.choose import Outcome, Scores, choose
from multiflow.pruning.plan import PruningPlan
from multiflow.pruning.stable import HALF, calibrate_until_stable
from multiflow.pruning.steps import PruningStep, State, prune_in_steps


def run(plan: PruningPlan) -> Outcome:
    """Give the masks of all sparsities, in one pass or, for a pruner in steps, each anew."""
    _check_memory(plan)
    if plan.pruner.stepwise:
        return prune_in_steps(plan, _score)
    begun = time.perf_counter()
    watched = None if plan.request.until_stable is None else calibrate_until_stable(plan)
    stats = watched.stats if watched else measure.statistics(plan)
    calibrated = time.perf_counter() - (watched.seconds if watched else 0.0)
    scores = Scores(plan, stats)
    packed = watched.packed if watched else choose(plan, scores, plan.sparsities, stats, plan.progress)
    timings = {"calibrate": calibrated - begun, "select": time.perf_counter() - calibrated}
    measure.forget(plan)
    if watched and plan.checkpoint:
        plan.checkpoint.part(HALF).delete()
    batches = [stats.batches if stats else 0] * len(packed)
    return Outcome(packed, batches, timings, scores=scores, stats=stats, curve=watched.curve if watched else None)


def _check_memory(plan: PruningPlan) -> None:
    """Announce the bytes that are held in the size of the model, if any; more than are free is an error."""
    pruner, weights = plan.pruner, plan.weights.parameters
    if "gradient" in pruner.statistics:
        if not isinstance(plan.batches, Stats):
            measure.check_gradient(pruner.name, weights)
    elif plan.ranks_all:
        measure.check_held(f"{pruner.name} ranks all layers together and holds their scores", weights, _score_size)
    if pruner.stepwise:
        announce(f"{pruner.name} works on a masked copy of the weights", sum(w.nbytes for w in weights.values()))


def _score_size(weight: Tensor) -> int:
    """The bytes of the scores of a weight: float32 or better."""
    return max(4, weight.element_size()) * weight.numel()


def _score(plan: PruningPlan, state: State, step: PruningStep) -> State:
    """Score the model as it is by now, and drop up to the target."""
    names = plan.pruner.statistics
    given = list(step.batches) if len(names) > 1 else step.batches
    found = [measure.measure(plan.model, plan.layout, given, plan.adapter, n, progress=step.progress) for n in names]
    scores = Scores(plan, Stats.join(found) if found else None)
    packed = choose(plan, state.frozen(scores), [step.target])[0]
    for name, bits in packed.items():
        if (bits & ~state.packed[name]).any():
            raise MultiflowError(
                f"at sparsity {step.target:g} the allocation drops fewer weights of layer '{name}' than a step before; "
                "in steps a layer can only lose more"
            )
    return State(packed, state.weights)
