"""Structured pruning: whole neurons and heads, chosen by the summed scores of their weights.

    score of a unit = sum of the scores of all weights that go with it

Any scorer will do: ``multiflow`` sums information flow, ``magnitude`` weights, ``wanda`` weight times activation. What
remains of an output layer can make up for what is gone: with H the second moment of its inputs, K the kept and D the
dropped columns, ``W_K + W_D H_DK (H_KK + ridge I)^-1`` gives the outputs closest to those of the dense layer.

The result is masks like any other: they can be applied, kept through training and joined with unstructured ones; what
they drop, `multiflow.formats.smaller` can remove.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, regex_of
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.steps import Watch, watched
from multiflow.base.types import Layout
from multiflow.calibration import MOMENT, Stats
from multiflow.masks import Masks
from multiflow.methods import find_pruner
from multiflow.methods.least_squares import check_ridge, damped, inverse
from multiflow.pruning.plan import find_adapter
from multiflow.pruning.result import Result
from multiflow.pruning.run import calibrate, prune
from multiflow.pruning.units import HEADS, MLP, UnitStack, find_units, stays_whole
from multiflow.pruning.unused import spare_unused

KINDS_OF_UNITS = {"mlp": (MLP,), "heads": (HEADS,), "all": (MLP, HEADS)}
"""What may go -> the kinds of units."""
UNIT_ALLOCATIONS = ("uniform", "group", "global")


@watched
def prune_units(
    model: nn.Module,
    method: str = "multiflow",
    share: float | Sequence[float] | Mapping[str, float] = 0.5,
    batches: Iterable[Any] | Stats | None = None,
    *,
    units: str = "mlp",
    allocation: str = "uniform",
    compensate: bool = True,
    ridge: float = 0.01,
    adapter: Adapter | None = None,
    seed: int = 0,
    progress: Watch = None,
    **hyper: Any,
) -> Result:
    """Decide which neurons and heads of a model go; the model itself is left as it is.

    Args:
        model: any ``nn.Module`` whose MLPs and attentions `find_units` recognises.
        method: the name of a scorer in one pass, whose scores are summed.
        share: of the units to drop, in [0, 1), or several; or group -> share.
        batches: calibration batches; data-free methods need them only to compensate.
        units: ``mlp`` for neurons, ``heads`` for attention heads, ``all`` for both, each with the share.
        allocation: ``uniform``, the same share in every MLP, which a config can say; ``group``, the same share in
            every group, its worst units first; ``global``, the worst of the model. One unit of each always stays.
        compensate: whether the output layers are refitted on what remains, where there are batches.
        ridge: of that refit, above 0.
        adapter: of a model that the library does not know.
        seed: of a random method.
        progress: ``f(what, done, total)``, called as the work goes on; None shows bars where a person looks (a
            terminal, a notebook), False nothing.
        **hyper: of the method.

    Returns:
        A `Result` with masks at each share; with groups at the mean share of the units. `mf.compact` makes the smaller
        model of it.

    Raises:
        MultiflowError: no such units, a share that leaves an MLP without a neuron, or a method that has no scores.

    >>> result = mf.prune_units(model, "multiflow", 0.5, batches)               # doctest: +SKIP
    >>> small = mf.compact(model, result.masks[0.5], result.weights)            # doctest: +SKIP
    """
    # 1. what is asked for fits
    if units not in KINDS_OF_UNITS:
        raise unknown("kind of units", units, KINDS_OF_UNITS)
    if allocation not in UNIT_ALLOCATIONS:
        raise unknown("allocation of units", allocation, UNIT_ALLOCATIONS)
    check_ridge(ridge)
    pruner = find_pruner(method)
    if pruner.kind != "scorer" or pruner.stepwise:
        raise MultiflowError(
            f"method '{method}' has no scores of single weights to sum; expected a scorer in one pass, such as "
            "'multiflow', 'wanda' or 'magnitude'",
            field="method",
        )
    found, batches = spare_unused(model, find_adapter(model, adapter), batches)
    layout = found.layout(model)
    stacks = [stack for stack in find_units(model, layout) if stack.kind in KINDS_OF_UNITS[units]]
    whole = stays_whole(model, layout, KINDS_OF_UNITS[units])
    if not stacks:
        raise MultiflowError(
            f"no {'MLPs' if units == 'mlp' else 'units'} are recognised among the {len(layout)} layers of the model; "
            + (whole or "expected layers called fc1 and fc2, gate_proj, up_proj and down_proj, q_proj and so on")
        )
    if whole:
        warnings.warn(whole, stacklevel=3)
    shares = _shares(share, stacks)
    for by_group in shares.values():
        _fields(stacks, by_group, allocation)

    # 2. scores of weights, summed to scores of units
    begun = time.perf_counter()
    base = prune(model, method, 0.5, batches, adapter=found, seed=seed, progress=progress, **hyper)
    if base.scores is None:
        raise MultiflowError(f"method '{method}' keeps no scores to sum; expected 'multiflow', say")
    scores = base.scores
    totals = {stack.name: stack.total({name: scores[name] for name in stack.layers}) for stack in stacks}

    # 3. which units stay at each share, and what makes up for the others
    moments = _moments(model, found, stacks, batches, progress) if compensate else None
    masks, weights = {}, {}
    for asked, by_group in shares.items():
        kept = choose_units(stacks, totals, by_group, allocation)
        masks[asked] = _masks(layout, stacks, kept, base.masks[0.5], method, units, allocation, asked, moments)
        if moments is not None:
            weights[asked] = _compensated(model, masks[asked], stacks, kept, moments, ridge)
    settings = {**next(iter(masks.values())).settings, "sparsity": list(shares)}
    timings = {"structured": time.perf_counter() - begun}
    return Result(masks, weights or None, None, base.stats, settings, timings)


def choose_units(
    stacks: Sequence[UnitStack], totals: Mapping[str, Tensor], shares: Mapping[str, float], allocation: str
) -> dict[str, Tensor]:
    """Return for each stack which units stay; lowest totals go, of equals the earlier ones.

    Args:
        stacks: MLPs and attentions.
        totals: name of a stack -> scores of its units.
        shares: group -> share of units to drop.
        allocation: within which the lowest are looked for: ``uniform``, ``group`` or ``global``.

    Raises:
        MultiflowError: nothing of a stack would stay.
    """
    kept = {stack.name: torch.ones(stack.count, dtype=torch.bool) for stack in stacks}
    for of, number in _fields(stacks, shares, allocation):
        sizes = [stack.count for stack in of]
        owners = torch.cat([torch.full((size,), at) for at, size in enumerate(sizes)])
        within_stack = torch.cat([torch.arange(size) for size in sizes])
        order = torch.cat([totals[stack.name] for stack in of]).argsort(stable=True)
        left = list(sizes)
        for unit in order.tolist():
            if not number:
                break
            owner = int(owners[unit])
            if left[owner] > 1:  # the last one of a stack stays, whatever its score
                left[owner] -= 1
                number -= 1
                kept[of[owner].name][within_stack[unit]] = False
    return kept


def _fields(
    stacks: Sequence[UnitStack], shares: Mapping[str, float], allocation: str
) -> list[tuple[list[UnitStack], int]]:
    """Return the stacks among which the lowest units are looked for together, and how many of theirs go."""
    fields: dict[tuple[str, ...], list[UnitStack]] = {}
    for stack in stacks:
        within = {"uniform": (stack.name,), "group": (stack.group,), "global": ()}[allocation]
        fields.setdefault((stack.kind, *within), []).append(stack)
    found = []
    for of in fields.values():
        number = round(sum(shares[stack.group] * stack.count for stack in of))
        if number > sum(stack.count for stack in of) - len(of):
            what = "neuron" if of[0].kind == MLP else "head"
            raise MultiflowError(
                f"share {shares[of[0].group]:g} would leave '{of[0].name}' with no {what} of its {of[0].count}; "
                "give a smaller share",
                field="share",
            )
        found.append((of, number))
    return found


def _shares(share: Any, stacks: Sequence[UnitStack]) -> dict[float, dict[str, float]]:
    """Read what was asked for: key of the result -> group -> share."""
    groups = dict.fromkeys(stack.group for stack in stacks)
    if isinstance(share, Mapping):
        for name in share:
            if name not in groups:
                raise unknown("group", str(name), groups)
        by_group = {group: _share(share.get(group, 0.0)) for group in groups}
        total = sum(stack.count for stack in stacks)
        mean = sum(by_group[stack.group] * stack.count for stack in stacks) / total
        return {round(mean, 6): by_group}
    several = list(share) if isinstance(share, Iterable) and not isinstance(share, str) else [share]
    if not several:
        raise MultiflowError(f"share {share!r} was given; expected a number in [0, 1), or several", field="share")
    return {one: dict.fromkeys(groups, _share(one)) for one in several}


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise MultiflowError(f"share {value!r} was given; expected a number in [0, 1)", field="share")
    return float(value)


def _moments(
    model: nn.Module, adapter: Adapter, stacks: Sequence[UnitStack], batches: Any, progress: Any
) -> dict[str, Tensor] | None:
    """Measure the second moments of the inputs of the output layers; None without batches."""
    if batches is None:
        return None
    outs = [name for stack in stacks for name in stack.columns]
    if isinstance(batches, Stats):
        if MOMENT not in batches.sums or not set(outs) <= set(batches.sums[MOMENT]):
            return None
        return {name: batches.get_layer(MOMENT, name) for name in outs}
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    layout = adapter.layout(model)
    wanted = regex_of([path for name in outs for path in layout[name].paths], paths)
    stats = calibrate(
        model,
        batches,
        adapter=replace(adapter, groups={"outputs": wanted}, exclude=None, towers={}),
        statistics=(MOMENT,),
        progress=progress,
    )
    return {name: stats.get_layer(MOMENT, name) for name in outs}


def _masks(
    layout: Layout,
    stacks: Sequence[UnitStack],
    kept: Mapping[str, Tensor],
    base: Masks,
    method: str,
    units: str,
    allocation: str,
    share: float,
    moments: Any,
) -> Masks:
    tensors = {name: torch.ones(layout[name].shape, dtype=torch.bool) for name in layout}
    for stack in stacks:
        tensors.update(stack.mask(layout, kept[stack.name]))
    settings = {
        **base.settings,
        "method": method,
        "pattern": f"units: {units}",
        "allocation": allocation,
        "sparsity": share,
        "changes_weights": moments is not None,
    }
    return Masks.from_tensors(layout, tensors, weights=base.weights, settings=settings, names=base.names)


def _compensated(
    model: nn.Module,
    masks: Masks,
    stacks: Sequence[UnitStack],
    kept: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    ridge: float,
) -> dict[str, Tensor]:
    """Return the weights of all layers, with output layers refitted on the columns that stay."""
    weights = {name: own[0].detach().cpu().clone() for name, own in masks.find_weights(model).items()}
    for stack in stacks:
        for name, numbers in stack.columns.items():
            stays = torch.zeros(masks.layout[name].shape[1], dtype=torch.bool)
            stays[numbers[kept[stack.name]].flatten()] = True
            if stays.all():
                continue
            weight, moment = weights[name].double(), moments[name].cpu().double()
            inside = inverse(damped(moment[stays][:, stays], ridge), name, ridge)
            made_up = weight[:, ~stays] @ moment[~stays][:, stays] @ inside
            new = torch.zeros_like(weight)
            new[:, stays] = weight[:, stays] + made_up
            weights[name] = new.to(weights[name].dtype)
        for name, numbers in stack.rows.items():
            weights[name][numbers[~kept[stack.name]].flatten()] = 0
    return weights
