"""``blocks``: the parts of a model one after the other, each matched to the outputs of the dense one (`matching`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiflow.base.parallel import exchange
from multiflow.calibration import to_device
from multiflow.calibration.batches import form
from multiflow.masks import keep_sparse
from multiflow.recovery.descent import Descended, Descent, descend
from multiflow.recovery.job import RecoveryJob
from multiflow.recovery.matching import Call, inputs_taken, match_loss, targets_taken
from multiflow.recovery.parts import Part

RARELY = 10
"""Times the last write took that pass before the next."""
Errors = dict[str, list[float]]
"""Name of a part -> its error on what was held out, before and after."""


def recover_blocks(job: RecoveryJob, how: Descent, inputs: str = "pruned") -> Errors:
    """Match the parts of the student to those of the teacher; return the errors.

    Args:
        job: what to recover.
        how: steps and rates, for each part.
        inputs: ``pruned``, those of the student as it is by then, or ``dense``.
    """
    done, errors = _go_on(job)
    saved, took = time.monotonic(), 0.0
    calls: Mapping[int, list[Call]] = {}
    for number, part in enumerate(job.parts):
        first = number == 0 or part.blocks[0] != job.parts[number - 1].blocks[0]
        if number < done:
            continue
        if first or not calls:
            calls = _take(job, [one for one in job.parts if one.blocks[0] == part.blocks[0]], inputs)
        found = _fit(job, part, calls, how)
        errors[part.name] = [found.before, found.after]
        if job.checkpoint and any(exchange("time", time.monotonic() - saved >= RARELY * took)):
            facts, begun = {"done": number + 1, "errors": errors}, time.monotonic()
            job.checkpoint.save_state(trained(job), job.identity, facts)
            saved = time.monotonic()
            took = saved - begun
        if job.progress:
            job.progress("recover blocks", number + 1, len(job.parts))
    return errors


def _fit(job: RecoveryJob, part: Part, calls: Mapping[int, list[Call]], how: Descent) -> Descended:
    student = job.student
    parameters = [student.get_parameter(name) for name in part.parameters]
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, how.lr * job.rms(part.layers))
    what = f"sub-block '{part.name}'"
    with keep_sparse(student, job.masks_of(part.layers), optimizer) as check:
        found = descend(
            parameters,
            lambda number: match_loss(student, part, calls[number], job.adapter),
            job.data.own,
            job.data.count,
            how,
            what,
            optimizer=optimizer,
        )
        check()
    for p in parameters:
        p.requires_grad_(False)
        p.grad = None
    return found


@torch.no_grad()
def _take(job: RecoveryJob, parts: Sequence[Part], inputs: str) -> Mapping[int, list[Call]]:
    """Run both models on all batches; note what the blocks of some parts are given, and what they should give."""
    blocks = list(dict.fromkeys(path for part in parts for path in part.blocks))
    modules = list(dict.fromkeys(path for part in parts for path in part.modules))
    run = job.adapter.outputs or job.adapter.forward
    source = job.student if inputs == "pruned" else job.teacher
    found: dict[int, list[Call]] = {}
    calls_of: dict[Any, int] = {}  # form of a batch -> how often the blocks are called in it, which is enough to run
    for number, pieces in job.data.own.items():
        found[number] = []
        for piece in pieces:
            batch = to_device(piece, job.device)
            given: list[Call] = []
            wanted: list[Call] = []
            expected = calls_of.get(form(piece))
            with targets_taken(job.teacher, parts, modules, wanted, expected):
                run(job.teacher, batch)
            calls_of.setdefault(form(piece), len(wanted))
            with inputs_taken(source, blocks, given, len(wanted)):
                run(source, batch)
            if [call.block for call in given] != [call.block for call in wanted]:
                continue  # a model that decides on the way what it runs
            masks = job.adapter.token_masks(batch) if job.adapter.token_masks else {}
            for call, target in zip(given, wanted, strict=True):
                call.targets, call.output, call.masks = target.targets, target.output, masks
                call.reached = target.reached
            found[number] += given
    return found


def trained(job: RecoveryJob) -> dict[str, Tensor]:
    """Return whatever may have changed in the student."""
    names = dict.fromkeys(name for part in job.parts for name in part.parameters)
    return {name: job.student.get_parameter(name).detach() for name in names}


def _go_on(job: RecoveryJob) -> tuple[int, Errors]:
    saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    if job.checkpoint:
        saved = job.checkpoint.load_state(job.identity, trained(job), {"done": len(job.parts)})
    if saved is None:
        return 0, {}
    tensors, facts = saved
    with torch.no_grad():
        for name, value in tensors.items():
            job.student.get_parameter(name).copy_(value)
    return facts["done"], facts["errors"]
