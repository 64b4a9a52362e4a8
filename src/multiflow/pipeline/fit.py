"""Running a fitter: layer by layer, the mask and the new weights of what it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from torch import Tensor

from multiflow.calibration import Stats
from multiflow.errors import MultiflowError
from multiflow.masks import pack, select
from multiflow.parallel import in_parallel
from multiflow.pipeline.choose import Packed, budgets
from multiflow.pipeline.job import Job
from multiflow.result import check_fitted
from multiflow.types import NofM, Pattern, PerRow


def fit_layers(job: Job, stats: Stats | None) -> Iterator[tuple[Packed, Mapping[str, Tensor]]]:
    """Yield for each sparsity the packed masks and the new weights."""
    for budget in budgets(job, {}, job.sparsities):

        def fit(name: str, budget: Mapping[str, int] = budget) -> tuple[np.ndarray, Tensor]:
            weight, parameter = job.weights[name], job.weights.parameters[name]
            version = parameter._version
            choose = partial(choose_part, count=budget[name], pattern=job.pattern)
            given = {need: stats.get_layer(need, name).to(weight) for need in job.pruner.needs} if stats else {}
            mask, fitted = job.pruner.function(weight, choose, **given, **job.own_hyper)
            if parameter._version != version:
                raise MultiflowError(
                    f"pruner '{job.pruner.name}' changed the weight of layer '{name}' in place; let it return a new "
                    "tensor, and load the model anew"
                )
            check_fitted(job.pruner, name, mask, fitted, budget[name], job.layout[name].shape)
            return pack(mask), fitted.masked_fill(~mask, 0.0).to("cpu", parameter.dtype)

        packed: Packed = {}
        weights: dict[str, Tensor] = {}
        for name, (bits, fitted) in zip(job.layout, in_parallel(fit, job.layout), strict=True):
            packed[name], weights[name] = bits, fitted
            if job.progress:
                job.progress("fit", len(packed), len(job.layout))
        yield packed, weights


def choose_part(scores: Tensor, done: float = 1.0, *, count: int, pattern: Pattern) -> Tensor:
    """Drop the lowest scores of a layer, when a share ``done`` of its steps is taken: each drops the same share.

    Args:
        scores: ``(out, in)``.
        done: in (0, 1]; at 1 exactly ``count`` weights go.
        count: the layer's budget.
        pattern: which weights may go together; on the way N:M keeps more of its M, and every row drops equally many.

    Returns:
        The mask on the device of the scores, True = kept.
    """
    rows, columns = scores.shape
    if done < 1 and isinstance(pattern, NofM):
        keep = pattern.of - _part(pattern.of - pattern.keep, pattern.of, done)
        pattern, count = NofM(keep, pattern.of) if keep < pattern.of else PerRow(), 0
    elif done < 1:
        by_row = isinstance(pattern, PerRow)
        count = _part(count // rows, columns, done) * rows if by_row else _part(count, rows * columns, done)
    return select(scores, [count], pattern)[0].to(scores.device)


def _part(count: int, size: int, done: float) -> int:
    """Of ``size`` weights of which ``count`` go in the end, how many are gone by now."""
    return round(size * (1 - (1 - count / size) ** done))
