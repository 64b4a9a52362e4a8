"""What several processes prune, and what one process must give for the same: shared by `test_ranks` and its workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import multiflow as mf
from multiflow.base.types import Budget, Layout
from multiflow.methods.search import Fitness, search
from tests import golden_data
from tests.small import ADAPTER

SPARSITIES = [0.63, 0.75, 0.9]
STEPS = {"steps": 3, "batches_per_step": 2}
SHORT = {"steps": 2, "batches_per_step": 3}
TRAINING = {"steps": 4, "lr": 0.3}


def faint(adapter: mf.Adapter, factor: float = 1e-6) -> mf.Adapter:
    """Make gradients so small that AdamW's steps are no longer all alike, and no scores are tied."""
    return replace(adapter, loss=lambda model, batch: adapter.loss(model, batch) * factor)


FAINT = faint(ADAPTER)


def quick_search(layout: Layout, sparsity: float, *, fitness: Fitness) -> Budget:
    """Search of a few generations."""
    return search(layout, [sparsity], fitness=fitness, generations=2, children=3)[0]


PRUNED: dict[str, tuple[str, str, int, dict[str, Any]]] = {  # case -> model, method, batches, settings
    "forward": ("xvlm", "wanda", 4, {}),
    "forward, odd": ("xvlm", "multiflow", 5, {}),
    "gradient": ("xvlm", "snip", 4, {}),
    "gradient, odd": ("dino", "snip", 5, {}),
    "gradient, one batch": ("dino", "snip", 1, {}),
    "in steps": ("xvlm", "itersnip", 6, STEPS),
    "in steps, odd": ("dino", "itersnip", 5, SHORT),
    "rows": ("xvlm", "chita", 5, {"batches_per_step": 5}),
    "rows, in steps": ("dino", "chita++", 4, SHORT),
    "data-free": ("xvlm", "lamp", 0, {}),
    "budgets searched": ("dino", "magnitude-layer", 3, {"allocation": quick_search}),
}
GROUPED: dict[str, tuple[str, int, dict[str, Any]]] = {  # case -> method, batches of BLIP, settings
    "queue": ("snip", 4, {}),
    "queue, odd": ("snip", 5, {}),
    "queue, in steps": ("itersnip", 6, {"steps": 2, "batches_per_step": 4}),
    "queue, in steps, odd": ("itersnip", 5, SHORT),
    "queue, learned": ("tamt", 4, {"steps": 2, "lr": 0.1}),
}


def kept(result: mf.Result) -> dict[str, Tensor]:
    """Masks and changed weights of a result, by sparsity and layer."""
    found = {f"mask/{s}/{name}": mask for s, masks in result.masks.items() for name, mask in masks.items()}
    for s, weights in (result.weights or {}).items():
        found |= {f"weight/{s}/{name}": weight for name, weight in weights.items()}
    return found


def prune_golden(family: str, method: str, count: int, settings: dict[str, Any]) -> dict[str, Tensor]:
    data = golden_data.batches(family)[:count] if count else None
    return kept(mf.prune(golden_data.model(family), method, SPARSITIES, data, **settings))


def blip_batches(count: int) -> list[dict[str, Any]]:
    """Batches of BLIP, the fourth with another one as its region part."""
    found: list[dict[str, Any]] = golden_data.batches("blip")[:count]
    return [batch | ({"region": found[0]} if number == 3 else {}) for number, batch in enumerate(found)]


def prune_blip(method: str, count: int, settings: dict[str, Any]) -> dict[str, Tensor]:
    model = golden_data.model("blip")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapter = faint(mf.adapter_for(model), 1e-5) if method == "tamt" else None
    found = kept(mf.prune(model, method, SPARSITIES, blip_batches(count), adapter=adapter, **settings))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return found


def group_loss(size: int) -> Callable[[nn.Module, list[Any]], Tensor]:
    """The loss of one process that takes the batches of ``size`` processes as a group.

    All see the same queues and the same momentum copies, part by part; the queues then take in the features of all.
    """

    def loss(model: Any, group: list[Any]) -> Tensor:
        queues = {name: model.get_buffer(name) for name in ("image_queue", "text_queue")}
        parts = [
            [{k: v for k, v in b.items() if k != "region"}, *([b["region"]] if "region" in b else [])] for b in group
        ]
        total = torch.zeros(())
        for step in range(max(map(len, parts))):
            before = {name: value.clone() for name, value in model.named_buffers()}
            features: dict[str, list[Tensor]] = {name: [] for name in queues}
            for of in parts:
                if step >= len(of):
                    continue
                with torch.no_grad():
                    for name, value in model.named_buffers():
                        if not torch.equal(value, before[name]):  # what the backward pass needs is not written to
                            value.copy_(before[name])
                total = total + model(**of[step], alpha=0.0).loss / len(of)
                start, count = int(before["queue_ptr"]), len(of[step]["input_ids"])
                for name, queue in queues.items():
                    features[name].append(queue[:, torch.arange(start, start + count) % queue.shape[1]].clone())
            with torch.no_grad():
                for name, queue in queues.items():
                    taken = torch.cat(features[name], dim=1)
                    queue.copy_(before[name])
                    queue[:, (start + torch.arange(taken.shape[1])) % queue.shape[1]] = taken
                model.get_buffer("queue_ptr").copy_(before["queue_ptr"] + taken.shape[1]).remainder_(queue.shape[1])
        return total / size

    return loss


def prune_groups(method: str, count: int, settings: dict[str, Any], size: int = 2) -> dict[str, Tensor]:
    """Prune BLIP with one process that takes its batches in groups; groups of a step do not reach into the next."""
    model = golden_data.model("blip")
    data, each = blip_batches(count), settings.get("batches_per_step", count)
    if method == "tamt":
        each = size
    adapter = replace(mf.adapter_for(model), loss=group_loss(size))
    if method == "tamt":
        adapter = faint(adapter, 1e-5)
    positions = [at % count for at in range(each * settings.get("steps", 1))]
    steps = [positions[at : at + each] for at in range(0, len(positions), each)]
    groups = [[data[at] for at in step[i : i + size]] for step in steps for i in range(0, each, size)]
    if "batches_per_step" in settings:
        settings = settings | {"batches_per_step": len(groups) // settings["steps"]}
    return kept(mf.prune(model, method, SPARSITIES, groups, adapter=adapter, **settings))
