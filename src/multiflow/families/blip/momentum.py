"""What BLIP's contrastive loss remembers: slow copies of the towers, and queues of the features they gave."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

ONLINE = ("vision_model", "vision_proj", "text_encoder", "text_proj")
"""The modules that have a momentum copy, which is called the same with ``_m`` at the end."""

MEMORY = rf"^({'|'.join(ONLINE)})_m\.|^(image|text|image_ids)_queue$|^queue_ptr$"
"""Names of what is remembered. A file may leave it out: the copies then equal the online weights, queues are fresh."""


def as_buffers(module: nn.Module) -> nn.Module:
    """Turn the parameters of a module into buffers: saved and moved with it, but never trained, pruned or counted."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            delattr(part, name)
            part.register_buffer(name, None if parameter is None else parameter.detach())
    return module


def online_path(path: str) -> str:
    """Path of the module or parameter that a momentum copy follows; any other path as it is.

    >>> online_path("vision_model_m.encoder.layers.0.mlp.fc1")
    'vision_model.encoder.layers.0.mlp.fc1'
    """
    return re.sub(rf"^({'|'.join(ONLINE)})_m(?=\.|$)", r"\1", path)


def momentum_pairs(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Pair each momentum tensor of a model with the online parameter that it follows."""
    return [
        (model.get_buffer(f"{name}_m.{path}"), online)
        for name in ONLINE
        for path, online in model.get_submodule(name).named_parameters()
    ]


@torch.no_grad()
def follow(model: nn.Module, momentum: float) -> None:
    """Let each momentum tensor become ``momentum * itself + (1 - momentum) * online``."""
    for copy, online in momentum_pairs(model):
        copy.mul_(momentum).add_(online, alpha=1 - momentum)


@torch.no_grad()
def enqueue(queue: Float[Tensor, "dim size"], start: Int[Tensor, " 1"], features: Float[Tensor, "batch dim"]) -> None:
    """Write features over the oldest of a queue, from column ``start`` on and round its end; the last ones win."""
    size = queue.shape[1]
    columns = (start + torch.arange(len(features), device=queue.device)) % size
    queue[:, columns[-size:]] = features[-size:].T.to(queue.dtype)
