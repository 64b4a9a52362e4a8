"""Weights that no hook of their own shows: fused attention, Conv1D and stacks of experts, against brute force."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

import multiflow as mf
from multiflow.calibration import MOMENT

PADDED = torch.arange(6)[None] < torch.tensor([6, 4, 1])[:, None]


class Routed(nn.Module):
    """Experts of one kind of storage and of one way to multiply, with a router that never takes the last of four."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.way, self.num_experts, self.hidden_size = way, 4, 6
        self.router = nn.Linear(6, 4)
        self.router.bias.data = torch.tensor([0.0, 0.0, 0.0, -1e9])
        up, down = torch.randn(4, 10, 6), torch.randn(4, 6, 5)
        if way in ("transposed", "all at once"):
            up, down = up.mT.contiguous(), down.mT.contiguous()
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    def forward(self, x):
        tokens = x.reshape(-1, 6)
        weight, chosen = self.router(tokens).softmax(-1).topk(2)
        out = torch.zeros_like(tokens)
        if self.way == "all at once":
            scale = torch.zeros(len(tokens), 4, dtype=x.dtype).scatter_(1, chosen, weight)
            states = tokens[None] * scale.T[..., None]
            gate, up = torch.bmm(states, self.up).chunk(2, -1)
            return torch.bmm(F.silu(gate) * up, self.down).sum(0).view_as(x)
        for expert in range(4):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            if self.way == "transposed":
                gate, up = (tokens[token] @ self.up[expert]).chunk(2, -1)
                found = (F.silu(gate) * up) @ self.down[expert]
            elif self.way == "weight first":
                gate, up = (self.up[expert] @ tokens[token].T).T.chunk(2, -1)
                found = (self.down[expert] @ (F.silu(gate) * up).T).T
            else:
                gate, up = F.linear(tokens[token], self.up[expert]).chunk(2, -1)
                found = F.linear(F.silu(gate) * up, self.down[expert])
            out.index_add_(0, token, found * weight[token, place, None])
        return out.view_as(x)


class Net(nn.Module):
    """A block of experts in numbered layers, as language models have it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"mlp": Routed(way), "out": nn.Linear(6, 3)})])

    def forward(self, x, mask=None):
        return self.layers[0]["out"](self.layers[0]["mlp"](x))


def routed(way, padded=True):
    net = Net(way)
    adapter = mf.Adapter(
        groups={"text": r"mlp(\.(up|down)|$)|out"},
        streams={".": "text"},
        token_masks=lambda batch: {"text": batch["mask"]},
        loss=lambda model, batch: model(**batch).square().mean(),
    )
    generator = torch.Generator().manual_seed(2)
    batch = {"x": torch.randn(3, 6, 6, generator=generator), "mask": PADDED if padded else torch.ones(3, 6).bool()}
    return net, adapter, batch


def expected(net, batch):
    """Every input of every expert, in float64, of real tokens alone."""
    block = copy.deepcopy(net.layers[0]["mlp"]).double()
    tokens = batch["x"].double()[batch["mask"]]
    weight, chosen = block.router(tokens).softmax(-1).topk(2)
    found = {}
    for expert in range(4):
        token, place = (chosen == expert).nonzero(as_tuple=True)
        up = block.up[expert]
        states = tokens[token] * (weight[token, place, None] if block.way == "all at once" else 1)
        gate, rest = (states @ (up if up.shape[0] == 6 else up.T)).chunk(2, -1)
        found[f"layers.0.mlp.up.{expert}"], found[f"layers.0.mlp.down.{expert}"] = states, F.silu(gate) * rest
    return {name: x.detach() for name, x in found.items()}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("way", ["plain", "transposed", "weight first", "all at once"])
def test_statistics_of_an_expert_are_those_of_the_real_tokens_that_are_sent_to_it(way, padded):
    net, adapter, batch = routed(way, padded)
    with pytest.warns(UserWarning, match=r"2 of the 8 weights of experts saw no token, first 'layers.0.mlp.up.3'"):
        stats = mf.calibrate(net, [batch, batch], adapter=adapter, statistics=["input_norm", MOMENT])
    for name, inputs in expected(net, batch).items():
        assert stats.counts["input_norm"][name] == 2 * len(inputs)
        if len(inputs):
            moment = inputs.T @ inputs / len(inputs)
            torch.testing.assert_close(stats[MOMENT][name].double(), moment, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(stats["input_norm"][name].double(), moment.diag().sqrt(), rtol=1e-4, atol=1e-6)
        else:  # all features alike, as large as those of the others on average
            others = [s.square().mean() for n, s in stats["input_norm"].items() if n[:-1] == name[:-1] and n != name]
            assert stats["input_norm"][name].square().unique().item() == pytest.approx(float(sum(others) / 3), rel=1e-4)
            assert torch.equal(stats[MOMENT][name], stats[MOMENT][name].diag().diag())


@pytest.mark.filterwarnings("ignore:.*saw no token|the loss never reaches")
@pytest.mark.parametrize("method", ["wanda", "magnitude", "lobs", "snip", "itersnip", "chita", "tamt", "multiflow"])
def test_experts_are_pruned_by_every_kind_of_pruner(method):
    net, adapter, batch = routed("transposed")
    before = copy.deepcopy(net.state_dict())
    hyper = {"steps": 2} if method in ("tamt", "itersnip") else {}
    result = mf.prune(net, method, 0.5, [batch], adapter=adapter, **hyper)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    masks = result.masks[0.5]
    assert masks["layers.0.mlp.up.1"].shape == (10, 6)
    rows = sum(layer.shape[0] * round(0.5 * layer.shape[1]) for layer in masks.layout.layers)
    assert sum(map(masks.dropped, masks)) == (rows if method == "wanda" else round(0.5 * masks.layout.size))
    result.apply_(net, 0.5)
    kept = net.layers[0]["mlp"].up[1] != 0  # stored (in, out)
    assert not (kept & ~masks["layers.0.mlp.up.1"].T).any()


def test_tamt_trains_parts_as_it_trains_whole_parameters():
    torch.manual_seed(0)
    one, adapter = (
        nn.Sequential(Conv1D(5, 4), nn.Linear(5, 2)),
        mf.Adapter(groups={"all": "."}, loss=lambda model, batch: model(batch).square().mean()),
    )
    two = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    two.load_state_dict(one.state_dict() | {"0.weight": one[0].weight.T})
    data = [torch.randn(8, 4) for _ in range(3)]
    of_one, of_two = (mf.prune(m, "tamt", 0.5, data, adapter=adapter, steps=6, lr=0.1).masks[0.5] for m in (one, two))
    assert all(torch.equal(of_one[name], of_two[name]) for name in of_two)


def test_a_learner_may_let_go_of_gradients_by_the_model_or_by_the_weight():
    seen = {}

    def learner(model, weights, loss, select, *, way="model"):
        """Add gradients up, unless they are let go of."""
        for _ in range(2):
            if way == "model":
                model.zero_grad()
            else:
                for weight in weights.values():
                    weight.grad = None
            loss().backward()
        seen[way] = {name: weight.grad.clone() for name, weight in weights.items()}
        return {name: weight.grad.abs() for name, weight in weights.items()}

    learner = mf.learner(learner)
    model = nn.Sequential(nn.MultiheadAttention(4, 2))
    adapter = mf.Adapter(
        groups={"all": "."}, forward=lambda m, x: m[0](x, x, x), loss=lambda m, x: m[0](x, x, x)[0].square().mean()
    )
    x = torch.randn(2, 3, 4)
    model[0](x, x, x)[0].square().mean().backward()
    whole, model[0].in_proj_weight.grad = model[0].in_proj_weight.grad, None
    for way in ("model", "weight"):
        mf.prune(model, learner, 0.5, [x], adapter=adapter, way=way)
        torch.testing.assert_close(seen[way]["0.v_proj"], whole[8:])


@pytest.mark.parametrize("mask_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("width", [None, 6])
def test_statistics_of_fused_attention(batch_first, mask_first, width):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, kdim=width, vdim=width)
    turn = (lambda x: x) if batch_first else (lambda x: x.transpose(0, 1))
    adapter = mf.Adapter(
        groups={"all": "."},
        forward=lambda model, b: model(turn(b["x"]), key=turn(b["y"]), value=turn(b["y"])),
        streams={"(q|out)_proj": "x"},
        token_masks=lambda b: {"x": b["mask"] if mask_first or batch_first else b["mask"].T},
    )
    batch = {"x": torch.randn(3, 6, 8), "y": torch.randn(3, 4, width or 8), "mask": PADDED}
    stats = mf.calibrate(attention, [batch], adapter=adapter)["input_norm"]
    wide = copy.deepcopy(attention).double()
    nn.init.eye_(wide.out_proj.weight)
    x, y = batch["x"].double(), batch["y"].double()
    heads = turn(wide(turn(x), turn(y), turn(y))[0])
    for name, inputs in {"q_proj": x[PADDED], "k_proj": y, "v_proj": y, "out_proj": heads[PADDED]}.items():
        wanted = inputs.reshape(-1, inputs.shape[-1]).square().mean(0).sqrt()
        torch.testing.assert_close(stats[name].double(), wanted, rtol=1e-5, atol=1e-7)


def test_a_mask_that_may_be_either_way_round_is_refused():
    attention = nn.MultiheadAttention(8, 2)
    adapter = mf.Adapter(
        groups={"all": "."},
        forward=lambda model, x: model(x, x, x),
        streams={".": "x"},
        token_masks=lambda x: {"x": torch.ones(4, 4).tril().bool()},
    )
    with pytest.raises(mf.MultiflowError, match=r"both 4 long, .* which way round"):
        mf.calibrate(attention, [torch.randn(4, 4, 8)], adapter=adapter)


def test_attention_inside_of_a_layer_that_has_a_faster_way():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
    model, x = nn.TransformerEncoder(layer, 1), torch.randn(3, 6, 8)
    adapter = mf.Adapter(groups={"all": "."}, forward=lambda m, b: m(b, src_key_padding_mask=~PADDED))
    stats = mf.calibrate(model, [x], adapter=adapter)
    assert set(stats.counts["input_norm"].values()) == {18}
    assert set(stats["input_norm"]) == {
        f"layers.0.{name}"
        for name in ("linear1", "linear2", *(f"self_attn.{which}_proj" for which in ("q", "k", "v", "out")))
    }
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:.*saw no token")
def test_numbers_that_overflow_on_the_way_are_no_padding():
    net, adapter, batch = routed("plain")
    with torch.no_grad():
        net.layers[0]["mlp"].up[0] = 1e30  # gate times up is Inf - Inf, or Inf times 0
    batch["x"] = batch["x"] * 1e9
    with pytest.raises(mf.MultiflowError, match=r"NaN.*in the input of .*mlp.down"):
        mf.calibrate(net, [batch], adapter=adapter)


class Copied(Routed):
    """Experts that multiply by copies of their weights."""

    def forward(self, x):
        gate, up = (x @ self.up.mean(0).T).chunk(2, -1)
        return (F.silu(gate) * up) @ self.down.mean(0).T


def test_weights_whose_products_nobody_sees_are_named():
    net, adapter, batch = routed("plain")
    net.layers[0]["mlp"] = Copied("plain")
    with pytest.raises(mf.MultiflowError, match=r"nobody can see what 'layers.0.mlp.up' multiplies: a Copied"):
        mf.calibrate(net, [batch], adapter=adapter)


def test_a_stack_that_is_stored_the_other_way_than_its_sizes_seem_to_say():
    net, adapter, batch = routed("plain")
    with torch.no_grad():
        up, down = torch.randn(4, 6, 6), torch.randn(4, 6, 6)
        net.layers[0]["mlp"] = square = Routed("transposed")
        square.up, square.down = nn.Parameter(up), nn.Parameter(down)
        square.forward = lambda x: (x.reshape(-1, 6) @ square.up[0] @ square.down[0]).view_as(x)
    with pytest.raises(mf.MultiflowError, match=r"'layers.0.mlp.up' .* is stored \(in, out\), .*transposed=r"):
        mf.calibrate(net, [batch], adapter=adapter)
    found = mf.calibrate(
        net, [batch], adapter=mf.Adapter(groups={"text": "mlp"}, exclude="router|[123]$", transposed="up|down")
    )
    assert set(found.counts["input_norm"].values()) == {18}


def test_zeros_of_experts_stay_and_their_masks_are_saved(tmp_path):
    net, adapter, batch = routed("transposed")
    masks = mf.prune(net, "magnitude", 0.5, adapter=adapter).masks[0.5]
    assert mf.Masks.load(masks.save(tmp_path / "masks.safetensors")) == masks
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    with mf.keep_sparse(net, masks, optimizer) as check:
        for _ in range(3):
            net(**batch).square().mean().backward()
            optimizer.step()
        check()
        with torch.no_grad():
            net.layers[0]["mlp"].down.add_(1)
        with pytest.raises(mf.MultiflowError, match=r"dropped weights of layer 'layers.0.mlp.down'"):
            check()
    assert masks.is_applied(net)
