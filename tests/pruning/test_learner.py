from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import multiflow as mf
from multiflow.pruning import learner
from multiflow.pruning.learner import LearnerCheckpoint
from tests.small import ADAPTER, QUICK, towers_batches, two_towers


def prune(sparsity=0.5, batches=None, **options):
    options = {"adapter": ADAPTER} | QUICK["tamt"] | options
    return mf.prune(two_towers(), "tamt", sparsity, batches or towers_batches(), **options)


def test_the_masks_of_a_sparsity_do_not_depend_on_the_others():
    both = prune([0.9, 0.5])
    assert both.masks[0.9] == prune(0.9).masks[0.9]
    assert both.masks[0.5] == prune(0.5).masks[0.5]


def test_a_step_takes_a_batch_and_begins_again_after_the_last_one():
    batches = towers_batches(1, 2)
    assert prune(batches=batches, steps=5).masks == prune(batches=batches * 3, steps=5).masks
    assert prune(batches=batches, steps=5).masks != prune(batches=batches[::-1], steps=5).masks


def test_the_result_of_a_learner():
    result = prune(seed=9)
    assert result.weights is result.scores is result.stats is None
    assert result.settings["hyper"] == {"lr": 0.05, "steps": 3, "threshold": "layer"}
    assert (result.settings["allocation"], result.settings["seed"]) == ("uniform", 9)


def test_progress_counts_the_steps_of_all_sparsities():
    told = []
    prune(sparsity=(0.5, 0.9), progress=lambda *step: told.append(step))
    assert told == [("learn", done, 6) for done in range(1, 7)]


@pytest.mark.parametrize(("given", "allocation"), [
    ({}, "uniform"),
    ({"threshold": "layer"}, "uniform"),
    ({"threshold": "global"}, "global"),
    ({"threshold": "layer", "allocation": "multimodal"}, "multimodal"),
    ({"threshold": "global", "pattern": "2:4"}, "uniform"),
])  # fmt: skip
def test_the_threshold_is_an_allocation(given, allocation):
    result = prune(**given)
    assert result.settings["allocation"] == allocation
    assert result.masks[0.5].sparsity == pytest.approx(0.5, abs=1e-3)


def test_the_pattern_holds():
    masks = prune(pattern="2:4").masks[0.5]
    assert all(bool((mask.view(-1, 4).sum(1) == 2).all()) for mask in masks.values())


def test_the_loss_is_that_of_the_next_batch_with_its_graph():
    seen, model, batches = [], two_towers(), towers_batches(2, 3)

    @mf.learner("looks")
    def looks(model, weights, loss, select):
        """Look."""
        for _ in range(3):
            seen.append(loss())
        kept = select({name: weight.abs() for name, weight in weights.items()})
        assert all(int((~kept[name]).sum()) == round(0.5 * weight.numel()) for name, weight in weights.items())
        assert all(weight.requires_grad and weight.grad is None for weight in weights.values())
        return weights

    mf.prune(model, "looks", 0.5, batches, adapter=ADAPTER)
    for value, batch in zip(seen, [*batches, batches[0]], strict=True):
        assert value.requires_grad
        torch.testing.assert_close(value, ADAPTER.loss(model, batch))


@pytest.mark.parametrize("change", [lambda weight: weight.mul_(0.5), lambda weight: weight.data.mul_(0.5)])
def test_a_learner_that_writes_to_the_users_weights_is_told(change):
    @mf.learner("impure")
    def impure(model, weights, loss, select):
        """Say."""
        with torch.no_grad():
            change(weights["vision.0"])
        return {name: weight.abs() for name, weight in weights.items()}

    said = "pruner 'impure' changed the weight of layer 'vision.0' in place; let it put other memory there"
    with pytest.raises(mf.MultiflowError, match=said):
        mf.prune(two_towers(), "impure", 0.5, towers_batches(), adapter=ADAPTER)


def test_a_learner_may_train_weights_of_its_own():
    @mf.learner("trains")
    def trains(model, weights, loss, select):
        """Say."""
        for weight in weights.values():
            weight.data = weight.data.clone()
        optimizer = torch.optim.SGD(weights.values(), 0.1)
        loss().backward()
        optimizer.step()
        return {name: weight.abs() for name, weight in weights.items()}

    model = two_towers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = mf.prune(model, "trains", [0.5, 0.75], towers_batches(), adapter=ADAPTER)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result.masks[0.5] != mf.prune(model, "magnitude-layer", 0.5, adapter=ADAPTER).masks[0.5]


@pytest.mark.parametrize(("seconds", "written"), [(0.9, [2, 4, 6, 8, 10]), (2.0, [2, 10])])
def test_a_checkpoint_that_takes_long_is_written_less_often(seconds, written, monkeypatch, tmp_path):
    now, steps = [0.0], []

    class Slow(mf.Checkpoint):
        def save_state(self, tensors, settings, facts):
            now[0] += seconds
            steps.append(facts["step"])

    monkeypatch.setattr(learner.time, "monotonic", lambda: now[0])
    scores = {"a": torch.zeros(2, 2, requires_grad=True)}
    optimizer = torch.optim.AdamW(scores.values())
    plan = SimpleNamespace(model=two_towers())
    checkpoint = LearnerCheckpoint(
        Slow(tmp_path, every=2), {}, SimpleNamespace(plan=plan, cycle=SimpleNamespace(taken=0))
    )
    for step in range(1, 11):
        now[0] += 3.0
        checkpoint.save(step, scores, optimizer)
    assert steps == written
