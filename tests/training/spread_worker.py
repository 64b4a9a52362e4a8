"""What `test_spread` lets two processes do, all in one launch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import multiflow as mf
from multiflow.base.parallel import leave
from multiflow.base.progress import Progress
from multiflow.training.loop import Validation, train
from multiflow.training.processes import full_state
from multiflow.training.settings import TrainSettings
from tests.small import every

PLAIN = TrainSettings(8, 0.05, weight_decay=0.1, precision="fp32", checkpoint_every=3, log_every=2, evaluate_every=4)
RUNS = {
    "adamw": PLAIN,
    "accumulated": replace(PLAIN, accumulate=2, clip=0.1),
    "sgd-bf16": replace(PLAIN, optimizer="sgd", precision="bf16"),
    "split": replace(PLAIN, shard=True),
    "split-accumulated": replace(PLAIN, shard=True, accumulate=2, clip=0.1),
}


class Stopped(Exception):
    """Ends a run in the middle."""


def make_model() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 2), nn.Linear(2, 1))
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.5)))  # a scalar, which cannot be split
    return model


def make_masks(model: nn.Module) -> mf.Masks:
    return mf.prune(model, "random", 0.5, adapter=every(model)).masks[0.5]


def batch(position: int) -> dict[str, torch.Tensor]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(position))
    return {"x": x, "y": x.sum(1, keepdim=True).sin()}


def loss(model: nn.Module, batch: dict[str, torch.Tensor], position: int) -> tuple[torch.Tensor, dict[str, float]]:
    return (model(batch["x"]) * model.scale - batch["y"]).square().mean(), {"position": position}


def run(folder: Path, settings: TrainSettings, stop: int = 0) -> dict[str, torch.Tensor]:
    """Train; return the weights, after a stop at a step and a resumption if one is given."""
    for resume in (False, True) if stop else (False,):
        model = make_model()
        masks = make_masks(model)

        def maybe_stop(progress: Progress, resume: bool = resume) -> None:
            if progress.step == stop and not resume:
                raise Stopped

        def evaluate(model: nn.Module = model) -> dict[str, float]:
            return {"norm": model[0].weight.norm().item()}  # a layer by itself: only in one piece

        look = Validation(evaluate, lambda step, figures: None)
        try:
            train(
                model, batch, loss, settings, folder, resume=resume, progress=maybe_stop, masks=masks, validation=look
            )
        except Stopped:
            continue
    return full_state(model)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    for name, settings in RUNS.items():
        found = {"whole": run(folder / name, settings), "resumed": run(folder / f"{name}-resumed", settings, stop=5)}
        torch.save(found, folder / f"{name}-{dist.get_rank()}.pt")
    dist.destroy_process_group()
    leave()
