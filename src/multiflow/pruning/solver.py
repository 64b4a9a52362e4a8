"""Running a solver: it chooses masks and new weights of all layers together, in one step or in many."""

from __future__ import annotations

from multiflow.base.adapter import parts
from multiflow.base.errors import MultiflowError
from multiflow.calibration import announce, check_loss_reaches, check_rows_fit, gradient_rows
from multiflow.masks import pack, unpack
from multiflow.pruning.plan import PruningPlan
from multiflow.pruning.stages import Outcome, check_fitted, check_named, check_pair, select_lowest
from multiflow.pruning.steps import PruningStep, State, count_samples, most_batches, prune_in_steps


def run(plan: PruningPlan) -> Outcome:
    """Give the masks and the new weights of each sparsity; more memory than there is is an error."""
    steps = int(plan.request.hyper["steps"])
    what, size = check_rows_fit(plan.weights.parameters, most_batches(plan), steps)
    announce(f"{plan.pruner.name} takes {what}", size)
    return prune_in_steps(plan, _solve)


def _solve(plan: PruningPlan, state: State, step: PruningStep) -> State:
    pruner, layout = plan.pruner, plan.layout
    # 1. The gradient of each batch; a weight that is gone has none, so that it stays gone.
    rows, samples = gradient_rows(
        plan.model,
        plan.weights.parameters,
        step.batches,
        plan.adapter.loss,  # type: ignore[arg-type]
        most=step.most,
        samples=count_samples,
        split=parts,
        idle=plan.adapter.idle,
        progress=step.progress,
    )
    kept = {name: unpack(state.packed[name], of.shape[1]) for name, of in rows.items()}
    check_loss_reaches(layout, {name for name, of in rows.items() if kept[name].all() and not of.any()})
    for name, of in rows.items():
        of *= kept[name].to(of.device)
    # 2. The solver's own work, which must leave the weights it is given as they are.
    given = {"gradient_rows": rows, "batch_samples": samples}
    needed = {name: given[name] for name in pruner.needs}
    count = round(step.target * layout.size)
    versions = {name: weight._version for name, weight in state.weights.items()}
    found = pruner.function(state.weights, count, select_lowest, **needed, **plan.request.own_hyper)
    for name, weight in state.weights.items():
        if weight._version != versions[name]:
            raise MultiflowError(
                f"pruner '{pruner.name}' changed the weight of layer '{name}' in place; let it return new "
                "tensors (weight * mask, not weight.mul_(mask)), and load the model anew"
            )
    # 3. Masks and weights of every layer, checked.
    pair = check_pair(pruner, found)
    masks, solved = check_named(pruner, "mask", pair[0]), check_named(pruner, "weight", pair[1])
    weights = {
        name: check_fitted(pruner, name, masks.get(name), solved.get(name), layer.shape).to(state.weights[name])
        for name, layer in layout.items()
    }
    if (dropped := sum(int((~masks[name]).sum()) for name in layout)) != count:
        raise MultiflowError(f"pruner '{pruner.name}' drops {dropped} weights; it was asked for {count}")
    return State({name: pack(masks[name]) for name in layout}, weights)
