"""Pruning a model block by block, with no more of it in memory than a block.

    for each block:   read its weights -> measure them on all data -> masks at all sparsities -> write, forget

Masks and new weights are those of the same run in memory, bit for bit. What a budget needs of all layers is seen to
first: a pass over the weights for ``multimodal``, say. A scorer whose budgets need the scores or the inputs of all
layers (a global ranking) chooses after the walk, and reads the weights a second time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, prunable_shares
from multiflow.base.artifacts import read_one, read_tensors, write_tensors
from multiflow.base.errors import MultiflowError
from multiflow.base.files import plain
from multiflow.base.guards import exclusively
from multiflow.base.offload import input_device, weight_files, without_mapping
from multiflow.base.parallel import in_parallel, world
from multiflow.base.runs import run_folder
from multiflow.base.steps import Watch, watched
from multiflow.base.types import Budget, Layout, Pattern
from multiflow.calibration import (
    NORM,
    Stats,
    announce,
    buffers_restored,
    check_fits,
    free_memory,
    sums_size,
)
from multiflow.calibration.unreached import never_reached
from multiflow.masks import Masks, hash_weight
from multiflow.pruning.fitter import fit_layer, work_size
from multiflow.pruning.plan import PruningPlan, Request, Weights, make_plan, request
from multiflow.pruning.result import RESULT_FILE, RUN_FILE, Result, short, weights_file
from multiflow.pruning.run import release_names
from multiflow.pruning.stages import Packed, Scores, budgets, make_masks
from multiflow.pruning.stream.units import Unit, find_units
from multiflow.pruning.stream.walk import Walk, take_in

WORK = "stream"
"""Of the folder of a run, the folder of what it keeps on the way."""
BEGUN = f"{WORK}/*/*.json"
"""Pattern of the files in a run's folder that say that there is something to go on with."""
BATCHES = "batches"  # in `WORK`
SCORER, FITTER = "scorer", "fitter"
Value = TypeVar("Value")


@watched
@exclusively("pruning")
def prune_streamed(
    model: nn.Module,
    method: str | Callable[..., Tensor] = "multiflow",
    sparsity: float | Sequence[float] | None = None,
    batches: Iterable[Any] | None = None,
    *,
    folder: str | Path,
    adapter: Adapter | None = None,
    pattern: str | Pattern | None = None,
    allocation: str | Callable[..., Mapping[str, int]] | None = None,
    seed: int = 0,
    sequential: bool = False,
    device: str | torch.device | None = None,
    progress: Watch = None,
    **hyper: Any,
) -> Result:
    """Prune a model of which one block at a time is in memory; masks and new weights are those of `prune`.

    Args:
        model: opened by ``mf.open_streamed``, or dispatched by accelerate (``device_map={"": "disk"}``).
        method: a scorer or a fitter without gradients that measures once.
        sparsity: as of `prune`.
        batches: as of `prune`; gone through once, and kept on the disk.
        folder: new or empty; masks, changed weights and ``result.json`` are written there, and activations on the way.
            A run that was killed goes on there when it is called again with the same arguments.
        adapter: as of `prune`.
        pattern: as of `prune`.
        allocation: as of `prune`.
        seed: as of `prune`.
        sequential: whether each block is measured on what the pruned blocks before it give, not the dense ones; each
            sparsity walks by itself then.
        device: where blocks run; None = where the hooks bring weights to.
        progress: ``f(what, done, total)``, called as the work goes on; None shows bars where a person looks (a
            terminal, a notebook), False nothing.
        **hyper: hyper-parameters of the method.

    Returns:
        The `Result`; changed weights are read from the folder when they are looked up.

    Raises:
        MultiflowError: as of `prune`; or a method that needs all of the model in memory, or a model without blocks.

    Example:
        >>> model = mf.open_streamed("llava-1.5-13b")                                              # doctest: +SKIP
        >>> mf.prune_streamed(model, "lobs", [0.5, 0.6], batches, folder="runs/llava")              # doctest: +SKIP
    """
    asked = request(method, sparsity, pattern=pattern, allocation=allocation, hyper=hyper)
    check_request(asked, sequential=sequential)
    plan = make_plan(asked, model, batches, adapter=adapter, seed=seed, progress=progress or None)
    check_streamed(plan)
    settings = {**plan.record(0), "sparsity": list(asked.sparsities), "sequential": sequential}
    passing = (RUN_FILE,)
    with run_folder(
        folder, settings, resume=True, record=RUN_FILE, ended=RESULT_FILE, keep=[BEGUN], passing=passing
    ) as place:
        result = stream(plan, place, sequential=sequential, device=device)
        result.save(place)
        shutil.rmtree(place / WORK, ignore_errors=True)
    if result.weights is None:
        return result
    return replace(result, weights={s: WeightsOnDisk(place / weights_file(s), plan.layout) for s in asked.sparsities})


def check_request(asked: Request, *, sequential: bool) -> None:
    """Refuse, before any model is there, what cannot be pruned block by block."""
    pruner, allocation = asked.pruner, asked.allocation
    if not pruner.shares_pass or pruner.takes_gradients:
        why = "runs the model backwards" if pruner.takes_gradients else "prunes in steps"
        raise MultiflowError(
            f"pruner '{pruner.name}' {why}, for which all of the model must be in memory; take one that measures "
            "inputs once, such as multiflow, wanda or lobs, or leave {stream} out",
            field="stream",
        )
    if "gradient" in allocation.statistics:
        raise MultiflowError(
            f"allocation '{allocation.name}' needs gradients, for which all of the model must be in memory; choose "
            "another {allocation}",
            field="allocation",
        )
    if asked.until_stable is not None:
        raise MultiflowError("a block is over before the next begins; leave {until_stable} out", field="until_stable")
    if world() > 1:
        raise MultiflowError(f"a model is streamed by one process, and there are {world()}; start one")
    if _chooses_last(asked) and (sequential or pruner.kind == FITTER):
        who = "on the pruned stream each block is" if sequential else f"pruner '{pruner.name}' prunes each block"
        raise MultiflowError(
            f"allocation '{allocation.name}' needs the {'scores' if 'scores' in allocation.needs else 'inputs'} of all "
            f"layers before the first one is pruned, but {who}{' pruned' if sequential else ''} when it comes; take "
            "{allocation='uniform'} or 'multimodal'",
            field="allocation",
        )
    if sequential and not asked.needs_data:
        raise MultiflowError(
            f"pruner '{pruner.name}' looks at no data, so that there is no pruned stream; leave {{sequential}} out",
            field="sequential",
        )


def check_streamed(plan: PruningPlan) -> tuple[Unit, ...]:
    """Refuse a model or data that cannot be streamed, and announce what memory a block takes; return the units."""
    pruner = plan.pruner
    if isinstance(plan.batches, Stats):
        raise MultiflowError("a model is streamed over batches, not statistics; pass the batches", field="batches")
    units = find_units(plan.model, plan.layout)
    blocks = [Layout(unit.layers) for unit in units if unit.layers]
    need = max(unit.size for unit in units if not unit.is_around)
    if plan.request.statistics:
        need += max(sums_size(block, plan.request.statistics) for block in blocks)
    if pruner.kind == FITTER:
        need += max(work_size(layer, pruner.needs) for layer in plan.layout.layers)
    device = input_device(plan.model)
    announce(f"streaming holds one of {len(blocks)} blocks, its statistics and its work", need)
    check_fits("one block, its statistics and its work", need, free_memory(device), "leave wide layers dense")
    return units


def _chooses_last(asked: Request) -> bool:
    """Whether budgets can be known only when all layers were measured."""
    return bool(asked.allocation.statistics) or "scores" in asked.allocation.needs


def stream(
    plan: PruningPlan, folder: Path, *, sequential: bool = False, device: str | torch.device | None = None
) -> Result:
    """Prune block by block; what is found on the way lies in ``folder / WORK``, which stays.

    Args:
        plan: of a model whose weights hooks of accelerate bring.
        folder: of the run; a killed run goes on with what lies there.
        sequential: see `prune_streamed`.
        device: likewise.
    """
    units = check_streamed(plan)
    begun, choosing = time.perf_counter(), 0.0
    found: dict[float, Packed] = {}
    weights: dict[float, Mapping[str, Tensor]] = {}
    for sparsities in [(s,) for s in plan.sparsities] if sequential else [plan.sparsities]:
        part = replace(plan, request=replace(plan.request, sparsities=sparsities))
        place = folder / WORK / (short(sparsities[0]) if sequential else "all")
        where = input_device(plan.model) if device is None else torch.device(device)
        one = _Streaming(part, units, place, where, sequential=sequential)
        with buffers_restored(plan.model) if plan.adapter.forward_moves_buffers else nullcontext(), without_mapping():
            packed, stats, hashes, batches = one.run()
        choosing += one.choosing
        found |= dict(zip(sparsities, packed, strict=True))
        if plan.pruner.changes_weights:
            weights |= {s: one.changed(number) for number, s in enumerate(sparsities)}
    record = {**plan.record(batches), "streamed": True, **({"sequential": True} if sequential else {})}
    names = release_names(plan)
    masks = {s: Masks(plan.layout, found[s], hashes, {**record, "sparsity": s}, names) for s in plan.sparsities}
    shares = prunable_shares(plan.model, plan.layout, plan.adapter.towers)
    settings = {**record, "sparsity": list(plan.sparsities), "prunable": shares}
    scores = Scores(plan, stats) if plan.pruner.kind == SCORER and not sequential else None
    timings = {"calibrate": time.perf_counter() - begun - choosing, "select": choosing}
    return Result(masks, weights or None, scores, stats, settings, timings)


class _Streaming:
    """One walk through a model, and what it finds in each block.

    Args:
        plan: what is asked for, with the sparsities of this walk.
        units: of the model.
        place: folder of what is found on the way.
        device: where blocks run.
        sequential: whether blocks give on what they give once pruned.
    """

    def __init__(
        self, plan: PruningPlan, units: Sequence[Unit], place: Path, device: torch.device, *, sequential: bool
    ) -> None:
        self._plan, self._units, self._place, self._sequential = plan, units, place, sequential
        self._device = device
        self._last = _chooses_last(plan.request)
        self._budgets: list[Budget] = []
        self._files: dict[int, Path] = {}
        self.choosing = 0.0  # seconds

    def run(self) -> tuple[list[Packed], Stats | None, dict[str, str], int]:
        """Return the masks of all sparsities, statistics, hashes of the weights, and the number of batches."""
        plan, names = self._plan, self._plan.request.statistics
        if not names:  # the weights alone say it all
            return (*self._from_weights(None), 0)
        if not self._last:
            self._budgets = budgets(plan, {}, plan.sparsities)
        walk = Walk(
            plan.model,
            plan.adapter,
            self._units,
            take_in(plan.batches, self._place.parent / BATCHES, self._device),  # type: ignore[arg-type]
            names,
            self._place,
            self._identity(),
            self._device,
            twice=self._sequential,
            progress=plan.progress,
        )
        walk.run(self._turn)
        if walk.missed:
            raise never_reached(plan.layout, walk.missed)
        packed: list[Packed] = [{} for _ in plan.sparsities]
        hashes: dict[str, str] = {}
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for unit in self._units:
            if unit.layers:
                self._files[unit.number] = self._file(unit, walk.turns(unit) - 1)
                tensors, header = self._read(self._files[unit.number])
                hashes |= header["hashes"]
                counts |= header["counts"]
                sums |= {name: tensors[f"sum/{name}"] for name in header["hashes"] if f"sum/{name}" in tensors}
                for number, of in enumerate(packed if not self._last else ()):
                    of |= {layer.name: tensors[f"mask/{number}/{layer.name}"].numpy() for layer in unit.layers}
        stats = Stats({NORM: _ordered(sums, plan)}, {NORM: _ordered(counts, plan)}, walk.batches) if sums else None
        if self._last:
            return (*self._from_weights(stats), walk.batches)
        return [_ordered(of, plan) for of in packed], stats, _ordered(hashes, plan), walk.batches

    def changed(self, number: int) -> Mapping[str, Tensor]:
        """Return the changed weights of a sparsity, read when looked up."""
        files = {
            layer.name: of.with_name(f"{of.stem}-weights{of.suffix}")
            for unit in self._units
            if (of := self._files.get(unit.number))
            for layer in unit.layers
        }
        return WeightsOnDisk(files, self._plan.layout, f"{number}/")

    def _from_weights(self, stats: Stats | None) -> tuple[list[Packed], Stats | None, dict[str, str]]:
        """Choose with all weights at hand, read one after the other."""
        plan, begun = self._plan, time.perf_counter()
        scores = Scores(plan, stats)
        packed = make_masks(scores, budgets(plan, scores, plan.sparsities, stats), plan.request.pattern, plan.progress)
        hashes = in_parallel(lambda name: hash_weight(plan.weights.value(name)), plan.layout)
        found = dict(zip(plan.layout, hashes, strict=True))
        self.choosing += time.perf_counter() - begun
        return packed, stats, found

    def _turn(self, unit: Unit, stats: Stats | None, before: int) -> None:
        """Prune a block, at all sparsities, and write what was found."""
        if stats is None:
            return
        begun = time.perf_counter()
        self._check_image_seen(unit)
        if before:
            stats = self._with_earlier(unit, stats, before)
        file = self._file(unit, before)
        layout = Layout(unit.layers)
        plan = replace(self._plan, layout=layout, weights=Weights(self._plan.model, layout), progress=None)
        tensors: dict[str, Tensor] = {}
        hashes = {name: hash_weight(plan.weights.value(name)) for name in layout}
        counts = next(iter(stats.counts.values()))
        if NORM in stats.sums:
            tensors |= {f"sum/{name}": total.cpu() for name, total in stats.sums[NORM].items()}
        if not self._last:
            packed, weights = self._prune(plan, stats)
            for number, of in enumerate(packed):
                tensors |= {f"mask/{number}/{name}": torch.from_numpy(bits) for name, bits in of.items()}
            if weights:
                named = {f"{number}/{name}": w for number, of in enumerate(weights) for name, w in of.items()}
                write_tensors(file.with_name(f"{file.stem}-weights{file.suffix}"), named, {"block": unit.path})
            if self._sequential:
                Masks(layout, packed[0]).apply_(plan.model, weights[0] if weights else None)
        write_tensors(file, tensors, {"block": unit.path, "hashes": hashes, "counts": counts})
        self.choosing += time.perf_counter() - begun

    def _with_earlier(self, unit: Unit, stats: Stats, before: int) -> Stats:
        """Add what a block saw in earlier turns; where that was not kept it cannot be pruned block by block."""
        if self._sequential or set(stats.sums) != {NORM}:
            raise MultiflowError(
                f"block '{unit.path}' is called again after all data have passed it (on a second sequence, by some "
                "batches only, or in a loop), which scorers on the dense stream alone can do with; take multiflow or "
                "wanda, or prune in memory"
            )
        tensors, header = self._read(self._file(unit, before - 1))
        sums = {layer.name: tensors[f"sum/{layer.name}"] for layer in unit.layers}
        return replace(Stats({NORM: sums}, {NORM: header["counts"]}).merge(stats), batches=stats.batches)

    def _check_image_seen(self, unit: Unit) -> None:
        """Say at the first block of a language model that its vision tower saw nothing, rather than at the end."""
        groups = {layer.group for layer in unit.layers}
        writes = getattr(self._plan.model, "get_output_embeddings", lambda: None)() is not None
        if writes and not any(self._place.glob("block-*")) and groups <= {"text", "fusion"}:
            missed = [layer.name for layer in self._plan.layout.layers if layer.group == "vision"]
            if missed:
                raise never_reached(self._plan.layout, missed)

    def _read(self, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return read_tensors(file, "masks of a block", f"delete '{self._place}' to begin afresh")

    def _prune(self, plan: PruningPlan, stats: Stats) -> tuple[list[Packed], list[dict[str, Tensor]]]:
        """Choose masks, and new weights if the pruner makes any, of the layers of a block for each sparsity."""
        own = [Budget({name: budget[name] for name in plan.layout}) for budget in self._budgets]
        if plan.pruner.kind == SCORER:
            return make_masks(Scores(plan, stats), own, plan.request.pattern), []
        packed: list[Packed] = []
        weights: list[dict[str, Tensor]] = []
        for budget in own:
            fitted = {name: fit_layer(plan, stats, name, budget[name]) for name in plan.layout}
            packed.append({name: mask for name, (mask, _) in fitted.items()})
            weights.append({name: weight for name, (_, weight) in fitted.items()})
        return packed, weights

    def _file(self, unit: Unit, before: int) -> Path:
        return self._place / f"block-{unit.number:05d}-{before}.safetensors"

    def _identity(self) -> dict[str, Any]:
        """What decides what is found, but for the batches, which are kept from the first time on."""
        plan = self._plan
        layers = hashlib.sha256(repr(plan.layout.layers).encode()).hexdigest()[:16]
        files = {
            path.name: [of.st_size, of.st_mtime_ns]
            for path in weight_files(plan.model)
            if self._place.parent not in path.parents and (of := path.stat())  # not those that are put there anew
        }
        own = {"sparsity": list(plan.sparsities), "sequential": self._sequential, "layers": layers, "files": files}
        return json.loads(json.dumps({**plan.record(0), **own}, default=plain))


def _ordered(found: Mapping[str, Value], plan: PruningPlan) -> dict[str, Value]:
    return {name: found[name] for name in plan.layout}


class WeightsOnDisk(Mapping[str, Tensor]):
    """Layer name -> its changed weight, read from a file when it is looked up.

    Args:
        files: the file of each layer, or one for all.
        layout: the layers.
        before: what stands before a layer's name in the file.
    """

    def __init__(self, files: Mapping[str, Path] | Path, layout: Layout, before: str = "") -> None:
        self._files, self._names, self._before = files, tuple(layout), before

    def __getitem__(self, name: str) -> Tensor:
        place = self._files if isinstance(self._files, Path) else self._files[name]
        return read_one(place, f"{self._before}{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
