"""Training over several processes: each has a batch of its own, and all take the same step.

The processes are those that ``torchrun`` or ``accelerate launch`` has started (`multiflow.base.parallel`). Either every
process holds the whole model and gradients are averaged after the backward pass, or ``fully_shard`` splits weights,
gradients and the optimizer's state among them. Nothing wraps the model: a loss may use whatever the model has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import exchange, sum_over_ranks_, world


def check_processes() -> None:
    if world() == 1:
        raise MultiflowError("shard was given, and there is one process; start several, as with: torchrun -m multiflow")


def split_model(model: nn.Module) -> None:
    """Split the weights of a model among the processes, as FSDP does; the model is then to be called whole.

    Raises:
        MultiflowError: there is only one process.
    """
    check_processes()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device
    scalars = {p for p in model.parameters() if p.ndim == 0}  # such as a temperature: every process keeps them
    fully_shard(model, mesh=init_device_mesh(device.type, (world(),)), ignored_params=scalars)


def is_split(model: nn.Module) -> bool:
    return hasattr(model, "unshard")


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Let the parts of a model that is split be called by themselves inside the block, as evaluation does."""
    if is_split(model):
        model.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        if is_split(model):
            model.reshard()  # type: ignore[operator]


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model; of one that is split, whole tensors on the CPU of every process."""
    state = model.state_dict()
    if not is_split(model):
        return state
    return {name: x.full_tensor().cpu() if hasattr(x, "full_tensor") else x for name, x in state.items()}


def hold_gradients(model: nn.Module, hold: bool) -> None:
    """Tell a model that is split not to share the gradients of the next backward pass yet, as more are to come."""
    if is_split(model):
        model.set_requires_gradient_sync(not hold)  # type: ignore[operator]


def average_gradients(model: nn.Module) -> None:
    """Average the gradients of what every process holds whole; the result is the same bits in all."""
    if world() == 1:
        return
    trainable = [p for p in model.parameters() if p.requires_grad and not hasattr(p, "placements")]
    if not trainable:
        return
    reached = exchange("gradients", [p.grad is not None for p in trainable])
    for p, anywhere in zip(trainable, map(any, zip(*reached, strict=True)), strict=True):
        if anywhere and p.grad is None:
            p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in trainable if p.grad is not None]
    sum_over_ranks_(gradients)
    for gradient in gradients:
        gradient.div_(world())


def clip_gradients(model: nn.Module, most: float) -> Tensor:
    """Scale the gradients of a model down to a norm of at most ``most``; return the norm that they had."""
    if not is_split(model):
        return nn.utils.clip_grad_norm_(model.parameters(), most)
    reached = [p for p in model.parameters() if p.grad is not None]
    groups = [[p for p in reached if hasattr(p, "placements") == split] for split in (True, False)]
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups if group]
    norm = torch.stack([x.full_tensor() if hasattr(x, "full_tensor") else x for x in norms]).norm()
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, most, norm)
    return norm


def average_figures(figures: dict[str, float]) -> dict[str, float]:
    """Return the means of figures over the processes, and the sum of their ``rate``."""
    everyone = exchange("figures", figures)
    names = {name: None for of in everyone for name in of}
    found: dict[str, Any] = {name: [of[name] for of in everyone if name in of] for name in names}
    return {name: sum(values) / (1 if name == "rate" else len(values)) for name, values in found.items()}
