"""The masks of a cell: made once for all tasks and sparsities, by whichever worker comes first.

``stats`` holds one file for every statistic of a model's calibration data and seed; all pruners that look at it share
the pass, scorers and fitters alike. Each statistic has a pass of its own, so that what a pruner is said to cost holds
nothing that others ask for. ``masks/PRUNING`` holds the masks of a pruner at all sparsities, and the weights of methods
that change them. Every file appears whole, and the line in ``prunings.jsonl`` comes last: what a kill leaves half done
is done again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from multiflow.bench.grid import Plan, hash_settings
from multiflow.bench.machine import describe_machine
from multiflow.bench.records import Pruning, Results
from multiflow.bench.sources import calibration_batches, load
from multiflow.calibration import Stats, read_stats
from multiflow.calibration.memory import peak_memory, reset_peak_memory
from multiflow.families.opening import find_device
from multiflow.masks import Masks
from multiflow.masks.files import mask_file
from multiflow.methods import find_pruner
from multiflow.pruning import calibrate, prune
from multiflow.pruning.plan import versions
from multiflow.pruning.result import Result, changed_weights
from multiflow.recovery import recover


def pruned(plan: Plan, results: Results, device: str, git: str | None = None) -> tuple[nn.Module, Masks | None]:
    """Return the model of a cell and its masks.

    The model is the one that the process shares, or a copy of it where the pruner changed the weights that it keeps.
    The masks come without the hashes that say which weights they were made for: the id of the cell says it.
    """
    model = load(plan.model)
    if plan.pruner is None:
        return model, None
    path = ensure_masks(plan, model, results, device, git) / mask_file(plan.cell.sparsity)
    masks = replace(Masks.load(path), weights={})
    if (weights := changed_weights(path, masks)) is not None:
        model = deepcopy(model)
        masks.apply_(model, weights)
    return model, masks


def ensure_masks(plan: Plan, model: nn.Module, results: Results, device: str, git: str | None) -> Path:
    """Make the masks of a cell's pruning unless they are there; other workers wait meanwhile. Returns their folder."""
    id = plan.cell.pruning
    assert id is not None
    folder = results.folder / "masks" / id
    with results.lock(id):
        known = results.prunings().get(id)
        there = [] if known is None else [s for s in known.zeros if (folder / mask_file(s)).is_file()]
        if missing := [s for s in plan.sparsities if s not in there]:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                model.to(find_device(device))
                new = replace(_prune(plan, model, missing, folder, results, device), git=git)
            finally:
                model.to("cpu")
            results.append(new if known is None else joined(known, new, anew=not shares_pass(plan)))
    return folder


def joined(known: Pruning, new: Pruning, *, anew: bool) -> Pruning:
    """Join the record of a pruning with that of other sparsities: what the masks of all of them cost.

    What is made a second time, because its masks are gone, costs what it cost the last time if nothing else is left.

    Args:
        known: what there was.
        new: what was made now.
        anew: whether each calibrated for itself, instead of sharing a pass.
    """
    if new.zeros.keys() >= known.zeros.keys():
        return new
    adds = bool(new.zeros.keys() - known.zeros.keys())
    return replace(
        new,
        calibration=known.calibration + adds * new.calibration if anew else new.calibration,
        selection=known.selection + adds * new.selection,
        peak_memory=max(known.peak_memory, new.peak_memory),
        zeros={**known.zeros, **new.zeros},
    )


def shares_pass(plan: Plan) -> bool:
    assert plan.pruner is not None
    pruner = find_pruner(plan.pruner.method)
    return bool(pruner.statistics) and pruner.shares_pass and not plan.pruner.budgets_need_data


def _prune(
    plan: Plan, model: nn.Module, sparsities: Sequence[float], folder: Path, results: Results, device: str
) -> Pruning:
    """Prune, write the masks, and return the record."""
    entry, cell = plan.pruner, plan.cell
    assert entry is not None
    assert cell.pruning is not None
    pruner = find_pruner(entry.method)
    batches: Any = None
    costs: list[Mapping[str, Any]] = []
    if shares_pass(plan):
        measured = [shared_statistic(name, plan, model, results) for name in pruner.statistics]
        batches, costs = Stats.join([stats for stats, _ in measured]), [cost for _, cost in measured]
    elif pruner.needs_data or entry.budgets_need_data:
        batches = calibration_batches(plan.model, model, cell.seed)
    reset_peak_memory()
    options: dict[str, Any] = {"pattern": entry.pattern, "allocation": entry.allocation, "seed": cell.seed}
    if batches is not None and not costs:  # hours of it, for methods in many steps
        options["checkpoint"] = folder / f"calibration-{'-'.join(f'{s:g}' for s in sparsities)}.safetensors"
    result = prune(model, entry.method, list(sparsities), batches, progress=False, **options, **entry.hyper)
    recovery = _recover(plan, model, result, folder)
    steps = result.timings.get("steps", 0.0)  # of a fitter that was given statistics: its masks and weights
    calibration = sum(cost["seconds"] for cost in costs) if costs else steps
    selection = result.timings.get("select", steps if costs else 0.0)
    pairs = max((cost["pairs"] for cost in costs), default=0)
    return pruning_record(
        *(result, cell.pruning, cell.model, cell.pruner, cell.seed),
        calibration=calibration,
        selection=selection + recovery,
        pairs=pairs if batches is None or costs else _pairs(batches, plan),
        peak_memory=max([peak_memory(), *(cost["peak_memory"] for cost in costs)]),
        machine=describe_machine(find_device(device)),
    )


def _recover(plan: Plan, model: nn.Module, result: Result, folder: Path) -> float:
    """Recover what the pruner's entry says, one sparsity after the other, and write it; return the seconds it took."""
    entry = plan.pruner
    assert entry is not None
    if not entry.recover:
        result.save_tensors(folder)
        return 0.0
    begun = time.perf_counter()
    for sparsity in result.masks:
        batches = calibration_batches(plan.model, model, plan.cell.seed)
        place = folder / f"calibration-recovery-{sparsity:g}.safetensors"
        how = {"seed": plan.cell.seed, "checkpoint": place, **entry.recovery}
        recover(model, result, sparsity, batches, entry.recover, **how).save_tensors(folder)
    return time.perf_counter() - begun


def pruning_record(result: Result, id: str, model: str, pruner: str, seed: int, **costs: Any) -> Pruning:
    """Return the record of a result; ``costs`` are the fields of `Pruning` about its seconds, data and machine."""
    layout = next(iter(result.masks.values())).layout
    layers = [(layer.name, layer.group, layer.size) for layer in layout.layers]
    zeros = {sparsity: [masks.dropped(name) for name in masks] for sparsity, masks in result.masks.items()}
    return Pruning(id, model, pruner, seed, layers=layers, zeros=zeros, versions=versions(), **costs)


def shared_statistic(name: str, plan: Plan, model: nn.Module, results: Results) -> tuple[Stats, Mapping[str, Any]]:
    """Measure a statistic unless it is there; return it, and what it cost: seconds, pairs, peak memory."""
    settings = plan.cell.settings
    what = {key: settings[key] for key in ("model", "calibration", "seed")}
    id = hash_settings({**what, "statistic": name})
    path = results.folder / "stats" / f"{id}.safetensors"
    with results.lock(id):
        if not path.exists():
            _measure(name, plan, model, path)
    return read_stats(path)


def _measure(name: str, plan: Plan, model: nn.Module, path: Path) -> None:
    """Measure a statistic and write it, with what that cost; its sums are gone when this is done."""
    batches = calibration_batches(plan.model, model, plan.cell.seed)
    reset_peak_memory()
    began = time.monotonic()
    stats = calibrate(model, batches, statistics=[name], progress=False)
    seconds = time.monotonic() - began
    stats.save(path, seconds=seconds, pairs=batches.seen, peak_memory=peak_memory())


def _pairs(batches: Any, plan: Plan) -> int:
    """Return how many pairs there are for methods that go through them again and again, the last time in part."""
    assert plan.model.calibration is not None
    return max(batches.seen, len(batches) * plan.model.calibration.batch_size)
