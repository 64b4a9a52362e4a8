from __future__ import annotations

import numpy as np
import pytest

from multiflow.bench.records import DENSE, Cell, Pruning

TASKS = {"retrieval": "mean R@1", "vqa": "accuracy"}
LAYERS = (
    ("vision.layers.0.q", "vision", 100),
    ("vision.layers.1.q", "vision", 100),
    ("text.layer.0.q", "text", 200),
)


def make_cell(pruner="multiflow", sparsity=0.75, seed=0, score=80.0, items=200, noise=None, **values):
    """A cell whose items are right with the probability ``score``; ``noise``: the draws of its training."""
    luck = hash_of(f"{values.get('model')} {values.get('task')} {pruner} {sparsity} {seed}") if noise is None else noise
    generator = np.random.default_rng(luck)
    difficulty = np.random.default_rng(7).random(items)  # the same items for everyone
    each = 100.0 * (
        0.7 * difficulty + 0.3 * generator.random(items) < np.quantile(difficulty, score / 100) * 0.7 + 0.15
    )
    record = {
        "model": "xvlm-shapes",
        "pruner": pruner,
        "sparsity": 0.0 if pruner == DENSE else sparsity,
        "task": "vqa",
        "seed": seed,
        "tier": "1",
        "score": float(each.mean()),
        "each": tuple(each),
        "curve": [(50, 30.0), (100, 60.0), (150, 70.0 + seed)],
        "seconds": {"finetune": 20.0, "evaluate": 4.0},
        "peak_memory": 800_000_000,
        "steps": 150,
        "versions": {"multiflow": "0.2.0", "torch": "2.13.0"},
        "git": "abc1234",
        "machine": "2 cores",
        "finished": "2026-01-05T10:00:00+00:00",
        "settings": {"finetune": {"steps": 150, "lr": 1e-4}},
        **values,
    }
    record.setdefault("metric", TASKS.get(record["task"], "accuracy"))
    record.setdefault("figures", {record["metric"]: record["score"]})
    key = (record[name] for name in ("model", "pruner", "sparsity", "task", "seed"))
    record.setdefault("id", "-".join(map(str, key)))
    if pruner != DENSE:
        record.setdefault("pruning", f"{record['model']}-{pruner}-{seed}")
    return Cell(**record)


def hash_of(text):
    return sum(ord(letter) * 31**i for i, letter in enumerate(text)) % 2**31


def bare(cell):
    """The cell as the grid knows it before it is computed."""
    names = ("id", "model", "pruner", "sparsity", "task", "seed", "tier", "pruning", "settings")
    return Cell(**{name: getattr(cell, name) for name in names})


def make_pruning(pruner="multiflow", seed=0, model="xvlm-shapes", text=None, sparsities=(0.63, 0.75, 0.9), **values):
    """Masks with the same share of zeros everywhere; ``text``: another share in the text layer at the last sparsity."""
    zeros = {s: [round(s * size) for _, _, size in LAYERS] for s in sparsities}
    if text is not None:
        zeros[sparsities[-1]][2] = round(text * LAYERS[2][2])
    record = {"calibration": 4.0, "selection": 0.5, "pairs": 512, "peak_memory": 900_000_000, **values}
    return Pruning(f"{model}-{pruner}-{seed}", model, pruner, seed, layers=LAYERS, zeros=zeros, **record)


EFFECTS = {"multiflow": 0.0, "magnitude": -10.0, "wanda": 0.0, "snip": -20.0}
TIERS = {"multiflow": "1", "magnitude": "1", "wanda": "1", "snip": "2"}


def make_grid(models=("xvlm-shapes", "blip-shapes"), tasks=("retrieval", "vqa"), sparsities=(0.63, 0.75, 0.9)):
    """A whole grid with known effects: magnitude 10 points and snip 20 points below multiflow; snip has one seed."""
    cells = []
    for model in models:
        for task in tasks:
            shared = {"model": model, "task": task}
            cells += [make_cell(DENSE, seed=seed, score=90, **shared) for seed in range(3)]
            for pruner, effect in EFFECTS.items():
                for i, sparsity in enumerate(sparsities):
                    score = 80 - 10 * i + effect
                    seeds = range(1 if TIERS[pruner] == "2" else 3)
                    cells += [make_cell(pruner, sparsity, s, score, tier=TIERS[pruner], **shared) for s in seeds]
    keys = {(c.model, c.pruner, c.seed) for c in cells if c.pruner != DENSE}
    prunings = [
        make_pruning(pruner, seed, model, text=1.0 if pruner == "magnitude" else None, sparsities=tuple(sparsities))
        for model, pruner, seed in sorted(keys)
    ]
    return cells, prunings, [bare(cell) for cell in cells]


@pytest.fixture(scope="session")
def grid():
    return make_grid()
