"""``distill``, ``scale`` and ``lora``: the whole model against the dense one (`distill`), with all that is kept, with
what is no matrix, or with masked factors.

- ``distill`` trains kept weights, biases, norms and scales.
- ``scale`` trains biases, norms, scales, and one gain for each row of a layer: ``diag(1 + g) W`` (PERP, arXiv
  2312.15230, without the head).
- ``lora`` trains what is no matrix, and MaskLoRA of the same paper: ``W + r (B A) * M``, with M the mask of W, and r
  the root mean square of its kept weights, so that one learning rate fits all layers. A is normal, B begins at zero.

Gains and factors are merged at the end; zeros stay zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.calibration import to_device
from multiflow.masks import keep_sparse
from multiflow.recovery.descent import Descended, Descent, descend
from multiflow.recovery.distill import DenseView
from multiflow.recovery.job import RecoveryJob

Weights = Callable[[], Mapping[str, Tensor]]
"""Gives name of a parameter -> what the student has in its place."""


@dataclass(frozen=True)
class Trainable:
    """What is trained.

    Args:
        own: names of the student's parameters.
        added: parameters beside the student.
        weights: of these, the student's weights.
    """

    own: tuple[str, ...]
    added: tuple[nn.Parameter, ...] = ()
    weights: Weights = dict


def distill(job: RecoveryJob, how: Descent) -> Descended:
    """Train all that is kept."""
    return _run(job, how, "distill", Trainable((*_wholes(job), *_small(job))))


def scale(job: RecoveryJob, how: Descent) -> Descended:
    """Train what is no matrix, and a gain for each row."""
    gains = {x.name: _parameter(torch.zeros(x.shape[0], 1, device=job.device)) for x in job.layout.layers}
    wholes = _wholes(job)

    def weights() -> dict[str, Tensor]:
        return _changed(job, wholes, lambda layer, weight: weight * (1 + gains[layer]))

    return _run(job, how, "scale", Trainable(_small(job), tuple(gains.values()), weights))


def lora(job: RecoveryJob, how: Descent, rank: int = 16) -> Descended:
    """Train what is no matrix, and masked factors."""
    wholes = _wholes(job)
    generator = torch.Generator().manual_seed(job.seed)
    downs: dict[str, nn.Parameter] = {}
    ups: dict[str, nn.Parameter] = {}
    sizes: dict[str, float] = {}
    for layer in job.layout:
        rows, columns = job.layout[layer].shape
        width = min(rank, rows, columns)
        downs[layer] = _parameter((torch.randn(width, columns, generator=generator) / width**0.5).to(job.device))
        ups[layer] = _parameter(torch.zeros(rows, width, device=job.device))
        sizes[layer] = job.rms([layer])

    def adapted(layer: str, weight: Tensor) -> Tensor:
        return weight + sizes[layer] * (ups[layer] @ downs[layer]) * job.masks[layer].to(job.device)

    def weights() -> dict[str, Tensor]:
        return _changed(job, wholes, adapted)

    return _run(job, how, "lora", Trainable(_small(job), (*downs.values(), *ups.values()), weights))


def batch_loss(job: RecoveryJob, number: int, weights: Mapping[str, Tensor] | None = None) -> Tensor | None:
    """Return the distillation loss of a batch, a mean over its parts."""
    found = []
    for piece in job.data.own[number]:
        batch = to_device(piece, job.device)
        loss = DenseView(job.teacher, job.adapter, job.blocks, batch).loss(job.student, weights)
        if loss is not None:
            found.append(loss)
    return torch.stack(found).mean() if found else None


def _run(job: RecoveryJob, how: Descent, name: str, of: Trainable) -> Descended:
    student = job.student
    own = [student.get_parameter(one) for one in of.own]
    for p in own:
        p.requires_grad_(True)
    unit = job.rms(list(job.layout))
    groups: list[dict[str, Any]] = [{"params": own, "lr": how.lr * unit}] if own else []
    if of.added:
        groups.append({"params": list(of.added), "lr": how.lr})
    optimizer = torch.optim.Adam(groups)
    parameters = [*own, *of.added]

    def after(tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        if job.checkpoint:
            job.checkpoint.save_state(tensors, job.identity, facts)
        if job.progress:
            job.progress(f"recover {name}", facts["epoch"], how.epochs)

    saved = None
    if job.checkpoint:
        like: dict[str, Tensor] = {
            f"{kind}/{n}": p for n, p in enumerate(parameters) for kind in ("now", "best", "exp_avg", "exp_avg_sq")
        }
        like |= {f"step/{n}": torch.zeros(()) for n in range(len(parameters))}
        saved = job.checkpoint.load_state(job.identity, like, {"epoch": how.epochs})
    with keep_sparse(student, job.masks, optimizer) as check:
        found = descend(
            parameters,
            lambda number: batch_loss(job, number, of.weights()),
            job.data.own,
            job.data.count,
            how,
            f"'{name}'",
            optimizer=optimizer,
            saved=saved,
            after_epoch=after,
        )
        with torch.no_grad():
            for key, weight in of.weights().items():
                student.get_parameter(key).copy_(weight)
        check()
    for p in own:
        p.requires_grad_(False)
        p.grad = None
    return found


def _wholes(job: RecoveryJob) -> dict[str, list[str]]:
    """Name of a parameter that holds layers -> the layers in it, one as a rule."""
    known = {id(parameter): name for name, parameter in job.student.named_parameters()}
    found: dict[str, list[str]] = {}
    for layer, places in job.masks.find_places(job.student).items():
        found.setdefault(known[id(places[0].whole)], []).append(layer)
    return found


def _changed(
    job: RecoveryJob, wholes: Mapping[str, Sequence[str]], change: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return the parameters that hold layers, each layer changed by ``change(layer, weight)``."""
    found: dict[str, Tensor] = {}
    for name, layers in wholes.items():
        own = job.student.get_parameter(name)
        if job.layout[layers[0]].part is None:
            found[name] = change(layers[0], own)
            continue
        whole = own.clone()
        for layer in layers:
            part = job.layout[layer].part
            assert part is not None
            part.view(whole).copy_(change(layer, part.view(own)))
        found[name] = whole
    return found


def _small(job: RecoveryJob) -> tuple[str, ...]:
    """Names of the parameters that are no matrices: biases, norms, scales, temperatures."""
    return tuple(name for name, parameter in job.student.named_parameters() if parameter.dim() <= 1)


def _parameter(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(torch.float32))
