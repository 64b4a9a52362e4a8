from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import multiflow as mf
from multiflow.calibration import gradient_rows
from tests.small import ADAPTER, chain, every, towers_batches, two_towers


def gradients(model, batches, **options):
    return mf.calibrate(model, batches, adapter=ADAPTER, statistics=["gradient"], **options)


def test_is_the_mean_of_the_batches_gradients_summed_over_all_users():
    model, batches = two_towers(), towers_batches()
    found = gradients(model, batches)["gradient"]
    weights = [model.get_submodule(name).weight for name in found]
    by_batch = [torch.autograd.grad(ADAPTER.loss(model, batch), weights) for batch in batches]
    for i, (name, gradient) in enumerate(found.items()):
        expected = torch.stack([of[i] for of in by_batch]).mean(0)
        torch.testing.assert_close(gradient, expected, msg=name)


def test_parts_of_the_data_merge():
    model, batches = two_towers(), towers_batches()
    parts = gradients(model, batches[:1]).merge(gradients(model, batches[1:]))
    whole = gradients(model, batches)
    assert parts.batches == whole.batches == 4
    for name, gradient in whole["gradient"].items():
        torch.testing.assert_close(parts["gradient"][name], gradient)


class Counting(nn.Module):
    """A model whose loss moves a buffer, as momentum queues do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.unused = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.layer(x).square().mean() * self.seen


def test_everything_is_left_as_it_was_even_after_an_error():
    model = Counting().train()
    model.layer.bias.requires_grad_(False)
    model.layer.weight.grad = torch.ones(3, 4)
    before, batches = copy.deepcopy(model.state_dict()), [torch.randn(2, 4), torch.randn(2, 4)]
    adapter = every(model, loss=lambda m, b: m(b))
    with torch.no_grad(), pytest.warns(UserWarning, match="first 'unused'"):
        mf.prune(model, "snip", 0.5, batches, adapter=adapter)
    with pytest.raises(mf.MultiflowError, match="loss of batch 2 is nan"):
        mf.prune(model, "snip", 0.5, [batches[0], batches[1] * float("nan")], adapter=adapter)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.layer.weight.grad, torch.ones(3, 4))
    assert model.layer.bias.grad is model.unused.weight.grad is None
    assert [p.requires_grad for p in model.layer.parameters()] == [True, False]
    assert model.training
    assert not model.layer.weight._post_accumulate_grad_hooks


def test_a_layer_without_gradient_has_gradient_zero_and_is_named_once():
    model = Counting()
    adapter = every(model, loss=lambda m, b: m(b))
    with pytest.warns(UserWarning, match=r"never reaches 1 of 2 layers, first 'unused': .*Adapter\(exclude=") as told:
        stats = mf.calibrate(model, [torch.randn(2, 4)] * 2, adapter=adapter, statistics=["gradient"])
    assert len(told) == 1
    assert not stats["gradient"]["unused"].any()
    assert stats["gradient"]["layer"].any()


def test_statistics_of_both_kinds_at_once():
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics=["gradient", "input_norm"])
    assert set(stats) == {"gradient", "input_norm"}
    assert stats.batches == 4
    first, again = (
        mf.prune(two_towers(), "snip", 0.5, data, adapter=ADAPTER).masks[0.5] for data in (stats, towers_batches())
    )
    assert first == again


def test_what_a_loss_must_be():
    model = chain(4, 3)
    with pytest.raises(mf.MultiflowError, match=r"adapter 'custom' has no loss.*Adapter\(loss=...\)"):
        mf.prune(model, "snip", 0.5, [torch.randn(2, 4)], adapter=every(model))
    with pytest.raises(mf.MultiflowError, match=r"the loss of batch 1 is \(2, 3\); .* must return a scalar"):
        mf.prune(model, "snip", 0.5, [torch.randn(2, 4)], adapter=every(model, loss=lambda m, b: m(b)))
    with pytest.raises(mf.MultiflowError, match="no calibration batches"):
        mf.prune(model, "snip", 0.5, [], adapter=every(model, loss=lambda m, b: m(b).mean()))


@pytest.mark.parametrize("method", ["snip", "chita", "tamt"])
@pytest.mark.parametrize("without", ["inference mode", "detach", "reentrant checkpoints"])
def test_a_loss_without_a_gradient_is_a_sentence(method, without):
    def loss(model, batch):
        if without == "inference mode":
            with torch.inference_mode():
                return model(batch).mean()
        if without == "detach":
            return model(batch).detach().mean()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch itself warns that there is none
            return checkpoint(model, batch, use_reentrant=True).mean()

    model = chain(4, 3)
    with pytest.raises(mf.MultiflowError, match="the loss of batch 1 has no gradient"):
        mf.prune(model, method, 0.5, [torch.randn(2, 4)], adapter=every(model, loss=loss))


def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path):
    model, batches = two_towers(), towers_batches(2, 2, 3, 1, 2)

    def stopping():
        yield from batches[:3]
        raise KeyboardInterrupt

    place = mf.Checkpoint(tmp_path / "calibration", every=2)
    with pytest.raises(KeyboardInterrupt):
        gradients(model, stopping(), checkpoint=place)
    seen = []
    resumed = gradients(model, batches, checkpoint=place, progress=lambda what, done, total: seen.append(done))
    assert seen == [3, 4, 5]
    straight = gradients(model, batches)
    assert all(torch.equal(resumed["gradient"][name], g) for name, g in straight["gradient"].items())
    assert list(tmp_path.iterdir()) == []


def rows_of(model, batches, loss=ADAPTER.loss, most=9, **options):
    weights = {name: model.get_submodule(name).weight for name in ADAPTER.layout(model)}
    options = {"samples": lambda batch: len(batch["ids"])} | options
    return gradient_rows(model, weights, batches, loss, most=most, **options)


@pytest.mark.parametrize("most", [4, 9])
def test_a_row_for_each_batch_and_their_mean_size(most):
    model, batches = two_towers(), towers_batches(4, 4, 3, 1)
    rows, samples = rows_of(model, batches, most=most)
    assert samples == 3.0
    mean = gradients(model, batches)["gradient"]
    for name, of in rows.items():
        weight = model.get_submodule(name).weight
        assert (of.shape, of.dtype) == ((4, weight.numel()), torch.float32)
        torch.testing.assert_close(of.mean(0).view(weight.shape), mean[name])
        single = torch.autograd.grad(ADAPTER.loss(model, batches[2]), weight)[0]
        torch.testing.assert_close(of[2], single.flatten())


def test_a_gradient_that_is_not_finite_names_layer_and_batch():
    def loss(model, batch):
        first = ADAPTER.loss(model, batch)
        return first + (model.vision[0].weight * (len(batch["ids"]) != 3)).square().sum().sqrt()

    with pytest.raises(mf.MultiflowError, match="NaN or Inf .*gradient of layer 'vision.0' in batch 3"):
        rows_of(two_towers(), towers_batches(4, 4, 3, 1), loss)


def test_rows_of_a_layer_without_gradient_are_zero():
    rows, _ = rows_of(two_towers(), towers_batches(2, 2), lambda m, b: m.text(m.embed(b["ids"])).square().mean())
    assert not rows["vision.0"].any()
    assert rows["text.0"].any(1).all()


def test_a_layer_that_some_batches_reach_is_no_surprise_nor_one_that_was_reached_before_a_kill(tmp_path):
    model, place = two_towers(), mf.Checkpoint(tmp_path / "calibration", every=1)
    batches = [batch | {"text": i == 0} for i, batch in enumerate(towers_batches(2, 2, 2))]

    def loss(m, batch):
        inputs = {name: value for name, value in batch.items() if name != "text"}
        return ADAPTER.loss(m, inputs) if batch["text"] else m.vision_out(m.vision(batch["pixels"])).square().mean()

    def stopping():
        yield from batches[:2]
        raise KeyboardInterrupt

    adapter = mf.Adapter(groups=ADAPTER.groups, loss=loss)
    options = {"adapter": adapter, "statistics": ["gradient"], "checkpoint": place}
    with pytest.raises(KeyboardInterrupt):
        mf.calibrate(model, stopping(), **options)
    assert mf.calibrate(model, batches, **options).batches == 3


@pytest.mark.parametrize(("method", "hyper"), [("snip", {}), ("chita", {}), ("tamt", {"steps": 2})])
def test_float16_loses_gradients_and_is_refused(method, hyper):
    model = chain(4, 3).half()
    adapter = every(model, loss=lambda m, b: m(b.half()).square().mean())
    with pytest.raises(mf.MultiflowError, match="layer '0' is float16, .*; run the model in bfloat16 or float32"):
        mf.prune(model, method, 0.5, [torch.randn(2, 4)], adapter=adapter, **hyper)
    model = model.bfloat16()
    adapter = every(model, loss=lambda m, b: m(b.bfloat16()).float().square().mean())
    assert mf.prune(model, method, 0.5, [torch.randn(2, 4)], adapter=adapter, **hyper).masks[0.5].sparsity == 0.5
