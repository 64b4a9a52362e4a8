"""What pruners from outside return: stored as zeros where the mask drops, or refused in one sentence."""

from __future__ import annotations

import pytest
import torch

import multiflow as mf
from tests.small import ADAPTER, towers_batches, two_towers


def solve(change, **options):
    """Prune by magnitude with a solver whose masks and weights ``change`` spoils."""

    @mf.solver("spoiled")
    def spoiled(weights, count, select, *, gradient_rows):
        """Say."""
        masks = select({name: weight.abs() for name, weight in weights.items()}, count)
        return change(dict(masks), {name: weight.clone() for name, weight in weights.items()})

    return mf.prune(two_towers(), "spoiled", 0.5, towers_batches(), adapter=ADAPTER, **options)


@pytest.mark.parametrize("steps", [1, 2])
def test_weights_of_a_solver_are_zero_where_its_mask_drops(steps):
    result, model = solve(lambda masks, weights: (masks, weights), steps=steps), two_towers()
    masks = result.apply_(model, 0.5)
    assert masks == mf.prune(two_towers(), "magnitude", 0.5, adapter=ADAPTER).masks[0.5]
    for name, mask in masks.items():
        weight, before = model.get_submodule(name).weight, two_towers().get_submodule(name).weight
        assert torch.equal(weight, before * mask)
        assert not weight[~mask].signbit().any()


@pytest.mark.parametrize(("change", "said"), [
    (lambda m, w: ({**m, "text.0": m["text.0"].T}, w), r"gave a mask \(16, 24\) for layer 'text.0'; .*\(24, 16\)"),
    (lambda m, w: ({**m, "text.0": None}, w), "gave a mask NoneType for layer 'text.0'"),
    (lambda m, w: ({**m, "text.0": m["text.0"].byte()}, w), "gave a mask of torch.uint8 for layer 'text.0'; exp"),
    (lambda m, w: ({**m, "text.0": m["text.0"].float()}, w), "gave a mask of torch.float32 for layer 'text.0'"),
    (lambda m, w: (m, {**w, "vision.0": w["vision.0"] / 0}), "gave NaN or Inf weights for layer 'vision.0'"),
    (lambda m, w: (m, {n: v for n, v in w.items() if n != "vision.0"}), "gave weights NoneType for layer 'vision.0'"),
    (lambda m, w: (list(m.values()), w), "gave a list; expected a dict from layer name to its mask"),
    (lambda m, w: (m, None), "gave a NoneType; expected a dict from layer name to its weight"),
    (lambda m, w: m, "gave a dict; a solver returns two things, masks and new weights"),
    (lambda m, w: (m, w, 1), "gave a tuple of 3; a solver returns two things"),
    (lambda m, w: None, "gave a NoneType; a solver returns two things"),
])  # fmt: skip
def test_what_a_solver_may_not_return(change, said):
    with pytest.raises(mf.MultiflowError, match=f"pruner 'spoiled' {said}"):
        solve(change)


@pytest.mark.parametrize(("change", "said"), [
    (lambda mask, weight: (mask.to(torch.uint8), weight), "gave a mask of torch.uint8 for layer 'text.0'; expected to"),
    (lambda mask, weight: (mask.float(), weight), "gave a mask of torch.float32 for layer 'text.0'"),
    (lambda mask, weight: mask, "gave a Tensor; a fitter returns two things, masks and new weights"),
])  # fmt: skip
def test_what_a_fitter_may_not_return(change, said):
    mf.fitter("spoiled")(lambda weight, choose: change(choose(weight.abs()), weight))
    with pytest.raises(mf.MultiflowError, match=f"pruner 'spoiled' {said}"):
        mf.prune(two_towers(), "spoiled", 0.5, adapter=ADAPTER)


@pytest.mark.parametrize("given", [lambda weights: list(weights.values()), lambda weights: None])
def test_what_a_learner_may_not_return(given):
    mf.learner("spoiled")(lambda model, weights, loss, select: given(weights))
    with pytest.raises(mf.MultiflowError, match=r"'spoiled' gave a \w+; expected a dict from layer name to its scores"):
        mf.prune(two_towers(), "spoiled", 0.5, towers_batches(), adapter=ADAPTER)
