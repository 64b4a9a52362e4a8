"""Training with masks: zeros stay zero, the kept weights train."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.base.progress import Progress
from multiflow.training.checkpoint import checkpoints
from multiflow.training.loop import Validation, train
from tests.small import every
from tests.training.test_loop import SETTINGS, batch, loss, make_model, same_bits, weights


def random_masks(model: nn.Module) -> mf.Masks:
    return mf.prune(model, "random", 0.5, adapter=every(model)).masks[0.5]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "weight_decay": 0.1},
        {"clip": 0.01, "accumulate": 2},
        {"precision": "bf16"},
    ],
    ids=["adamw", "sgd", "clipped and accumulated", "bf16"],
)
def test_no_weight_is_revived_and_the_kept_ones_train_also_after_a_resumption(tmp_path, changes):
    settings, whole = replace(SETTINGS, **changes), make_model()
    before, masks = weights(whole), random_masks(whole)
    train(whole, batch, loss, settings, tmp_path / "whole", masks=masks)

    def stop(progress: Progress) -> None:
        if progress.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_model(), batch, loss, settings, tmp_path / "stopped", masks=masks, progress=stop)
    resumed = make_model()
    train(resumed, batch, loss, settings, tmp_path / "stopped", masks=masks, resume=True)
    assert same_bits(weights(whole), weights(resumed))
    for layer, mask in masks.items():
        after = weights(resumed)[f"{layer}.weight"]
        assert not after[~mask].any()
        assert (after != before[f"{layer}.weight"])[mask].all()


def test_a_revived_weight_stops_the_run_before_it_is_saved(tmp_path):
    model = make_model()
    masks = random_masks(model)

    @torch.no_grad()
    def revive() -> dict[str, float]:
        model[4].weight[:, :] = 1.0
        return {"figure": 1.0}

    stored = []
    look = Validation(revive, lambda step, figures: stored.append(step))
    settings = replace(SETTINGS, evaluate_every=7)
    count = masks.dropped("4")
    with pytest.raises(MultiflowError, match=f"{count} of the {count} dropped weights of layer '4' are no longer 0.0"):
        train(model, batch, loss, settings, tmp_path, masks=masks, validation=look)
    assert stored == []
    assert [c.name for c in checkpoints(tmp_path)] == ["step-00000005"]
