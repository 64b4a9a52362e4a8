"""Small models, batches and adapters that the engine's tests share."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

import multiflow as mf


class TwoTowers(nn.Module):
    """A text tower over padded tokens and a vision tower; the last layers of both share one weight."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, width)
        self.text = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
        self.vision = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
        self.text_out = nn.Linear(width, width)
        self.vision_out = nn.Linear(width, width)
        self.vision_out.weight = self.text_out.weight
        self.head = nn.Linear(width, 2)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        text = self.text_out(self.text(self.embed(ids)))
        vision = self.vision_out(self.vision(pixels))
        return self.head((text * mask[..., None]).sum(1) + vision.sum(1))


ADAPTER = mf.Adapter(
    groups={"text": r"^text\.", "vision": r"^vision\.", "shared": r"_out$"},
    forward=lambda model, batch: model(**batch),
    loss=lambda model, batch: model(**batch).square().mean(),
    streams={r"^text": "text"},
    token_masks=lambda batch: {"text": batch["mask"].bool()},
)

QUICK: dict[str, dict[str, float]] = {
    "itersnip": {"steps": 2, "batches_per_step": 2},
    "chita++": {"steps": 2, "batches_per_step": 2},
    "tamt": {"steps": 3, "lr": 0.05},
    "alps": {"steps": 5},
    "admm": {"steps": 6, "gradual": 4},
    "exchange": {"start": 2, "panels": 1},
    "lobs": {"rounds": 3, "iterations": 8},
    "multiflow-refit": {"iterations": 8},
}
"""Settings with which the methods that run a model again and again do so a few times only."""


def two_towers(seed: int = 0) -> TwoTowers:
    torch.manual_seed(seed)
    return TwoTowers().eval()


def towers_batches(*sizes: int, tokens: int = 7, seed: int = 1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes or (4, 4, 3, 1):
        lengths = torch.randint(2, tokens + 1, (size, 1), generator=generator)
        batches.append(
            {
                "pixels": torch.randn(size, 5, 16, generator=generator),
                "ids": torch.randint(0, 32, (size, tokens), generator=generator),
                "mask": (torch.arange(tokens) < lengths).long(),
            }
        )
    return batches


def chain(*widths: int, seed: int = 0) -> nn.Sequential:
    """A chain of linear layers ``0, 1, ...`` without biases."""
    torch.manual_seed(seed)
    return nn.Sequential(*[nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)])


def every(model: nn.Module, **options: object) -> mf.Adapter:
    """An adapter with all linear layers in one group."""
    return mf.Adapter(groups={"all": "."}, **options)  # type: ignore[arg-type]
