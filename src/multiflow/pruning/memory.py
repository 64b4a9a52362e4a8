"""What a scorer or a learner holds beside the model: said before the first batch; more than there is free is refused.

Fitters and solvers say what they take themselves (`fit`, `steps`), and so do the statistics of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from multiflow.calibration import Stats, announce, check_fits, free_memory
from multiflow.pruning.job import Job

TRAINED = 5 * 4  # bytes a weight while scores are trained: score, its gradient and two moments, room for a step


def check_held(job: Job) -> None:
    """Announce the bytes that a scorer or a learner holds in the size of the model, if any.

    Raises:
        MultiflowError: a scorer needs more of them on a device than are free there.
    """
    pruner, weights = job.pruner, job.weights.parameters
    if pruner.kind == "learner":
        size = sum(TRAINED * weight.numel() + 2 * weight.nbytes for weight in weights.values())
        announce(f"{pruner.name} trains scores, which with masked weights and their gradients take up to", size)
    elif pruner.kind == "scorer":
        if "gradient" in pruner.statistics:
            if not isinstance(job.batches, Stats):
                check_gradient(pruner.name, weights)
        elif job.allocation == "global":
            _check(f"{pruner.name} ranks all layers together and holds their scores", weights, score_size)
        if pruner.stepwise:
            announce(f"{pruner.name} works on a masked copy of the weights", sum(w.nbytes for w in weights.values()))


def check_gradient(who: str, weights: Mapping[str, Tensor]) -> None:
    """Announce the bytes of the mean gradient, which is held in float32; more than are free is an error."""
    _check(f"{who} holds the gradients of {len(weights)} layers", weights, lambda weight: 4 * weight.numel())


def score_size(weight: Tensor) -> int:
    """Return the bytes of the scores of a weight: float32 or better."""
    return max(4, weight.element_size()) * weight.numel()


def _check(what: str, weights: Mapping[str, Tensor], size: Callable[[Tensor], int]) -> None:
    sizes = dict.fromkeys((weight.device for weight in weights.values()), 0)
    for weight in weights.values():
        sizes[weight.device] += size(weight)
    for device, need in sizes.items():
        check_fits(f"{what}, which", need, free_memory(device), "leave layers dense with Adapter(exclude=...)")
    announce(what, sum(sizes.values()))
