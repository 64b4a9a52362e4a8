from __future__ import annotations

import torch

from multiflow.families.matching import draw_negatives


def test_positives_are_never_drawn_however_similar():
    group = torch.tensor([0, 0, 1, 1, 1, 2])
    positives = group[:, None] == group
    sim = torch.where(positives, 50.0, 0.0)
    drawn = set()
    for seed in range(100):
        images, texts = draw_negatives(sim, sim.T, seed, floor=1e-4, positives=positives)
        drawn |= {(i, int(j)) for column in (images, texts) for i, j in enumerate(column)}
    assert drawn == {(i, j) for i in range(6) for j in range(6) if group[i] != group[j]}


def test_by_default_the_diagonal_is_positive():
    sim = torch.randn(4, 4)
    for seed in range(10):
        given = draw_negatives(sim, sim.T, seed, floor=1e-4, positives=torch.eye(4, dtype=torch.bool))
        default = draw_negatives(sim, sim.T, seed, floor=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(given, default, strict=True))
