"""`recover`: from a pruned model and calibration data to kept weights that do again what the dense model did."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.guards import check_seed, exclusively, is_shortage
from multiflow.base.parallel import agree, exchange, rank, together, world
from multiflow.base.steps import Watch, watched
from multiflow.calibration import (
    Checkpoint,
    Stats,
    announce,
    buffers_restored,
    check_fits,
    evaluating,
    free_memory,
    to_device,
)
from multiflow.masks import Masks, hash_weight
from multiflow.pruning.plan import Weights, find_adapter
from multiflow.pruning.result import Result, short
from multiflow.pruning.stages import identity
from multiflow.recovery import blocks, whole
from multiflow.recovery.descent import Descent, split_off
from multiflow.recovery.job import Data, RecoveryJob, gather
from multiflow.recovery.parts import Part, find_parts

HALF = (torch.float16, torch.bfloat16)
INPUTS = ("pruned", "dense")


@dataclass(frozen=True)
class Way:
    """A way of recovery.

    Args:
        summary: one line on it.
        run: ``f(job, how, **its own settings)`` -> what the report says of it.
        how: steps and rates where none are given.
        own: settings of its own, with their defaults.
    """

    summary: str
    run: Callable[..., Mapping[str, Any]]
    how: Descent
    own: Mapping[str, Any]


WAYS: dict[str, Way] = {
    "scale": Way(
        "biases, norms, scales and a gain for each row, of the whole model",
        lambda job, how: whole.scale(job, how).report(),
        Descent(epochs=5),
        {},
    ),
    "blocks": Way(
        "attention, cross-attention and MLP in turn, matched to the outputs of the dense model",
        lambda job, how, inputs: {"parts": blocks.recover_blocks(job, how, inputs)},
        Descent(epochs=10),
        {"inputs": "pruned"},
    ),
    "distill": Way(
        "all kept weights of the whole model: hidden states, in-batch similarities, logits",
        lambda job, how: whole.distill(job, how).report(),
        Descent(epochs=10),
        {},
    ),
    "lora": Way(
        "masked low-rank factors, merged with the zeros kept",
        lambda job, how, rank: whole.lora(job, how, rank).report(),
        Descent(epochs=10),
        {"rank": 16},
    ),
}
"""The ways of recovery by name."""


@watched
@together()
@exclusively("recovery")
def recover(
    model: nn.Module,
    result: Result | Masks,
    sparsity: float | None = None,
    batches: Iterable[Any] | None = None,
    how: str | Sequence[str] = "blocks",
    *,
    adapter: Adapter | None = None,
    seed: int = 0,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Watch = None,
    **settings: Any,
) -> Result:
    """Train what a pruned model keeps until it does again what the dense one does, on calibration data alone.

    No labels and no task: the dense model is the teacher. One batch in eight is held out; the passes end when the loss
    on it gets no better, and the best weights are kept. Dropped weights stay zero.

    Args:
        model: the dense model that was pruned; it is left as it is.
        result: of `prune`, or of a recovery before; or masks.
        sparsity: which of its sparsities; may be left out where there is one.
        batches: any iterable of calibration batches, two or more, which are kept in memory.
        how: ``scale`` (biases, norms, scales: the fastest), ``blocks`` (each sub-block in turn), ``distill`` (the whole
            model) or ``lora`` (masked factors), or several of them, one after the other.
        adapter: how to run the model; needed for models of no known family.
        seed: seed of whatever is random.
        checkpoint: file (or `Checkpoint`) that lets a killed recovery go on; same settings, same file.
        progress: ``f(what, done, total)``, called as the work goes on; None shows bars where a person looks (a
            terminal, a notebook), False nothing.
        **settings: ``epochs``, ``lr`` (a share of the root mean square of the kept weights), ``batches_per_step``,
            ``patience`` (passes without a better loss), of the way they concern; ``inputs`` of ``blocks`` (``pruned``:
            each sub-block sees what the ones before it give by then, or ``dense``); ``rank`` of ``lora``.

    Returns:
        A `Result` for this sparsity: the same masks, and ``result.weights[sparsity]``, in which names of parameters
        (biases, norms) stand beside names of layers. ``result.settings["recovery"]`` says what it was worth: the
        distillation loss of what was held out, and the error of every sub-block, before and after.

    Raises:
        MultiflowError: masks of another model, a model that is pruned already, no data, a loss that is not finite.

    Example:
        >>> result = mf.prune(model, "alps", 0.9, batches)                                      # doctest: +SKIP
        >>> better = mf.recover(model, result, 0.9, batches)                                    # doctest: +SKIP
        >>> better.apply_(model, 0.9)                                                           # doctest: +SKIP
    """
    # 1. what is asked for
    check_seed(seed)
    asked = find_ways(how, settings, seed)
    masks, weights, sparsity = chosen_masks(result, sparsity)
    adapter = find_adapter(model, adapter)
    check_teacher(model, masks)
    if isinstance(batches, Stats):
        raise MultiflowError("recovery runs the model; pass {batches}, not statistics measured before", field="batches")
    begun = time.perf_counter()
    said = [{"how": name, **asdict(descent), **own} for name, descent, own in asked]
    more = {"recovery": said, "seed": seed, "masks": digest(masks), "from": digest(weights)}
    who = identity(adapter, masks.layout, Weights(model, masks.layout), **more)
    if world() > 1:
        agree(who)

    # 2. the data, and a sparse copy
    data = gather(batches)
    student = make_student(model, masks, weights)
    place = Checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    with buffers_restored(model), evaluating(model), evaluating(student):
        parts = _find_parts(model, masks, adapter, data)
        tell = (progress or None) if rank() == 0 else None
        job = RecoveryJob(model, student, masks, adapter, data, parts, seed, who, None, tell)

        # 3. the ways, one after the other
        before = mean_loss(job)
        for number, (name, descent, own) in enumerate(asked):
            at = place and place.part(f"{number}-{name}")
            step = replace(job, checkpoint=at, identity={**who, "way": number})
            said[number] |= WAYS[name].run(step, descent, **own)
        after = mean_loss(job)
    if place:
        for number, (name, *_) in enumerate(asked):
            place.part(f"{number}-{name}").delete()

    # 4. the result
    report = {
        "ways": said,
        "batches": data.count,
        "held_out": len(split_off(data.count)[1]),
        "distillation": {"before": before, "after": after},
    }
    earlier = dict(result.settings)
    past = earlier.pop("recovery", [])
    record = {**earlier, "sparsity": [sparsity], "changes_weights": True, "recovery": [*past, report]}
    names = [*masks.settings.get("recovered", []), *(name for name, *_ in asked)]
    note = {"sparsity": sparsity, "changes_weights": True, "recovered": names}
    kept = replace(masks, settings={"method": "unknown", **masks.settings, **note})
    timings = dict(result.timings) if isinstance(result, Result) else {}
    timings["recovery"] = timings.get("recovery", 0.0) + time.perf_counter() - begun
    return Result({sparsity: kept}, {sparsity: changes(job, weights)}, None, None, record, timings)


def find_ways(
    how: str | Sequence[str], settings: Mapping[str, Any], seed: int = 0
) -> list[tuple[str, Descent, dict[str, Any]]]:
    """Return the ways asked for, each with its steps and rates and its own settings.

    Raises:
        MultiflowError: a way or a setting that is not known, or a value out of range.
    """
    if not isinstance(how, str | Sequence):
        raise MultiflowError(
            f"{{how}} {how!r} was given; give one of {', '.join(WAYS)}, or a list of them", field="how"
        )
    names = [how] if isinstance(how, str) else list(how)
    if not names:
        raise MultiflowError(f"{{how}} names no way; give one of {', '.join(WAYS)}", field="how")
    for name in names:
        if name not in WAYS:
            raise unknown("way of recovery", str(name), WAYS)
    steps = [field.name for field in fields(Descent) if field.name != "seed"]
    known = [*steps, *dict.fromkeys(own for name in names for own in WAYS[name].own)]
    for name in settings:
        if name not in known:
            raise unknown(f"setting of {' and '.join(names)}", name, known)
    found = []
    for name in names:
        way = WAYS[name]
        given = {key: value for key, value in settings.items() if key in steps and value is not None}
        own = {**way.own, **{key: value for key, value in settings.items() if key in way.own and value is not None}}
        found.append((name, replace(way.how, **given, seed=seed), own))
        if own.get("inputs", "pruned") not in INPUTS:
            raise unknown("{inputs}", str(own["inputs"]), INPUTS)
        size = own.get("rank", 1)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise MultiflowError(f"{{rank}} {size!r} was given; expected a whole number of at least 1", field="rank")
    return found


def chosen_masks(result: Result | Masks, sparsity: float | None) -> tuple[Masks, Mapping[str, Tensor] | None, float]:
    """Return masks, changed weights and sparsity of what is to be recovered."""
    if isinstance(result, Masks):
        own = result.settings.get("sparsity", result.sparsity)
        if sparsity is not None and short(sparsity) != short(own):
            raise MultiflowError(
                f"{{sparsity}} {sparsity:g} was given, and the masks are those of {short(own)}", field="sparsity"
            )
        return result, None, own
    if not isinstance(result, Result):
        raise MultiflowError(
            f"result is a {type(result).__name__}; expected what mf.prune or mf.Result.load gives, or mf.Masks"
        )
    if sparsity is None:
        if len(result.masks) > 1:
            there = ", ".join(map(short, result.masks))
            raise MultiflowError(f"the result has masks at {there}; say which with {{sparsity}}", field="sparsity")
        sparsity = next(iter(result.masks))
    masks = result.masks[sparsity]
    return masks, None if result.weights is None else result.weights[sparsity], sparsity


def check_teacher(model: nn.Module, masks: Masks) -> None:
    """Refuse a model that is none, not that of the masks, or sparse already."""
    masks.find_weights(model)
    if any(map(masks.dropped, masks)) and masks.is_applied(model):
        raise MultiflowError(
            "the model is zero already wherever the masks drop, so nothing is left to learn from; give the dense "
            "model, from which the masks were made"
        )


def make_student(model: nn.Module, masks: Masks, weights: Mapping[str, Tensor] | None) -> nn.Module:
    """Return a sparse copy of a model, in float32 where it is in half precision, which nothing trains yet."""
    need = sum(4 * p.numel() for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    device = next(model.parameters()).device
    what = "a copy of the model, with its gradients and moments,"
    check_fits(what, 2 * need, free_memory(device), "use another device")
    announce("recovery holds a copy of the model", need)
    try:
        student = deepcopy(model)
    except Exception as error:
        if is_shortage(error):
            raise
        raise MultiflowError(
            f"a {type(model).__name__} cannot be copied ({type(error).__name__}: {error}), which recovery needs; take "
            "out of it what cannot be copied"
        ) from error
    masks.apply_(student, weights)
    if any(p.dtype in HALF for p in student.parameters()):
        student.float()
    return student.requires_grad_(False)


def changes(job: RecoveryJob, weights: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the weights of all layers, and by their names the other parameters that are not those of the teacher."""
    found: dict[str, Tensor] = {}
    covered: dict[int, int] = {}  # identity of a parameter -> how many of its entries layers cover
    theirs = job.masks.find_weights(job.teacher)
    for name, places in job.masks.find_places(job.student).items():
        for key in {id(place.whole) for place in places}:
            covered[key] = covered.get(key, 0) + job.layout[name].size
    for name, ours in job.masks.find_weights(job.student).items():
        value = ours[0].detach().to("cpu", theirs[name][0].dtype, copy=True)
        found[name] = value.masked_fill_(~job.masks[name], 0.0)
    for name, parameter in job.student.named_parameters():
        old = job.teacher.get_parameter(name).detach()
        new = parameter.detach().to(old.dtype)
        if covered.get(id(parameter)) != parameter.numel() and (name in (weights or {}) or not torch.equal(old, new)):
            found[name] = new.to("cpu", copy=True)
    return found


def mean_loss(job: RecoveryJob) -> float | None:
    """Return the distillation loss of what is held out, over all processes; None where there is nothing to compare."""
    _, held = split_off(job.data.count)
    with torch.no_grad():
        mine = [loss.item() for n in held if n in job.data.own and (loss := whole.batch_loss(job, n)) is not None]
    everyone = [loss for of in exchange("held out", mine) for loss in of]
    return math.fsum(everyone) / len(everyone) if everyone else None


def digest(tensors: Masks | Mapping[str, Tensor] | None) -> str | None:
    """Give eight digits that tell masks or weights apart."""
    if tensors is None:
        return None
    if isinstance(tensors, Masks):
        return f"{reduce(lambda crc, name: crc32(tensors.packed[name].data, crc), tensors, 0):08x}"
    return f"{crc32(repr([(name, hash_weight(tensor)) for name, tensor in tensors.items()]).encode()):08x}"


def _find_parts(model: nn.Module, masks: Masks, adapter: Adapter, data: Data) -> list[Part]:
    """Find the sub-blocks, in the first process that has a batch."""
    found = None
    if data.own:
        device, run = next(model.parameters()).device, adapter.outputs or adapter.forward
        sample = next(iter(data.own.values()))
        with torch.no_grad():
            found = find_parts(model, masks.layout, lambda: [run(model, to_device(part, device)) for part in sample])
    return next(parts for parts in exchange("parts", found) if parts is not None)
