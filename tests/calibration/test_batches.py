"""What batches may hold, and what a model does with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import multiflow as mf
from multiflow.calibration import to_device
from tests.small import ADAPTER, QUICK, chain, every, towers_batches, two_towers

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    x: Any
    note: Any = None


def test_tensors_are_found_whatever_holds_them():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    array.flags.writeable = False
    batch = {"a": array, "b": [Pair(torch.ones(2)), None], "c": "caption", "d": np.array(["x"]), "e": Pair}
    moved = to_device(batch, CPU)
    assert torch.equal(moved["a"], torch.arange(6.0).view(2, 3))
    assert isinstance(moved["b"][0].x, Tensor)
    assert moved["b"][1] is None
    assert (moved["c"], moved["d"] is batch["d"], moved["e"] is Pair) == ("caption", True, True)


@pytest.mark.parametrize("method", ["wanda", "snip", "chita"])
@pytest.mark.parametrize("wrap", [lambda x: x.numpy(), lambda x: Pair(x.numpy()), lambda x: [x, None], lambda x: x])
def test_all_of_them_give_the_same_masks(wrap, method):
    model, inputs = chain(8, 8, 4), [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (4, 2)]

    def run(model, batch):
        x = batch.x if isinstance(batch, Pair) else batch[0] if isinstance(batch, list) else batch
        return model(x)

    adapter = every(model, forward=run, loss=lambda m, b: run(m, b).square().mean())
    plain = every(model, loss=lambda m, b: m(b).square().mean())
    expected = mf.prune(model, method, 0.5, inputs, adapter=plain).masks[0.5]
    assert mf.prune(model, method, 0.5, [wrap(x) for x in inputs], adapter=adapter).masks[0.5] == expected


@pytest.mark.parametrize("method", ["wanda", "snip", "tamt", "chita"])
def test_batches_that_were_made_in_inference_mode(method):
    batches, options = towers_batches(), QUICK.get(method, {})
    with torch.inference_mode():
        made = [{name: value.clone() for name, value in batch.items()} for batch in batches]
    one, other = (mf.prune(two_towers(), method, 0.5, data, adapter=ADAPTER, **options) for data in (batches, made))
    assert one.masks == other.masks


def test_a_batch_that_is_none_and_batches_without_samples_are_told():
    model = chain(4, 4)
    with pytest.raises(mf.MultiflowError, match="batch 2 is None; expected a dict"):
        mf.calibrate(model, [torch.ones(2, 4), None], adapter=every(model))
    with pytest.raises(mf.MultiflowError, match="layer '0' saw no tokens"):
        mf.calibrate(model, [torch.ones(0, 4)], adapter=every(model))
    some = mf.calibrate(model, [torch.ones(0, 4), torch.ones(2, 4)], adapter=every(model))
    assert some.counts["input_norm"] == {"0": 2}


class Choosy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) if x.sum() > 0 or not x.numel() else self.a(x)


def test_layers_that_some_alike_batches_do_not_reach_are_told():
    model = Choosy()
    with pytest.warns(UserWarning, match=r"1 of 2 layers .* first 'b' \(batch 2 "):
        mf.calibrate(model, [torch.ones(2, 4), -torch.ones(3, 4), torch.ones(2, 4)], adapter=every(model))
    mf.calibrate(model, [torch.ones(2, 4), torch.ones(0, 4), torch.ones(1, 4)], adapter=every(model))


class Checkpointed(nn.Module):
    """Recomputes its blocks in the backward pass; without an input that has a gradient it would give none."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(2))
        self.recompute = True

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True) if self.recompute else block(x)
        return x


@pytest.mark.parametrize("method", ["snip", "itersnip", "chita", "chita++", "tamt"])
def test_reentrant_checkpoints_give_the_same_masks(method):
    torch.manual_seed(0)
    model = Checkpointed()
    model.embed.weight.grad = before = torch.ones(16, 8)
    batches = [torch.randint(0, 16, (3, 5), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    adapter = mf.Adapter(groups={"all": "blocks"}, loss=lambda m, b: m(b).square().mean())
    found = []
    for model.recompute in (True, False):
        options = QUICK.get(method, {})
        found.append(mf.prune(model, method, 0.5, batches, adapter=adapter, **options).masks[0.5])
        assert model.embed.weight.grad is before
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert found[0] == found[1]
    assert all(0 < share < 1 for share in found[0].sparsities().values())


@pytest.mark.parametrize("method", ["wanda", "snip", "tamt"])
def test_batches_of_size_zero_are_called_empty(method):
    batches = [{name: value[:0] for name, value in batch.items()} for batch in towers_batches()]
    with pytest.raises(mf.MultiflowError, match="empty"):
        mf.prune(two_towers(), method, 0.5, batches, adapter=ADAPTER, **QUICK.get(method, {}))


@pytest.mark.parametrize("method", ["wanda", "snip"])
def test_tokens_without_an_embedding_are_a_sentence(method):
    first, second, *_ = towers_batches()
    second["ids"][0, 0] = 99
    with pytest.raises(mf.MultiflowError, match="batch 2 holds numbers of tokens for which the model has no embedding"):
        mf.prune(two_towers(), method, 0.5, [first, second], adapter=ADAPTER)
