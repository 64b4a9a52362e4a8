"""Whole neurons and heads: which layers belong together, which units go, what makes up for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTForImageClassification,
)

import multiflow as mf
from multiflow.pruning.structured import choose_units
from multiflow.pruning.units import UnitStack, find_units
from tests.small import chain, every, two_towers

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
WORDS = {"vocab_size": 20, "max_position_embeddings": 16}


def vit(layers: int = 2) -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = SMALL | {"num_hidden_layers": layers}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)).eval()


def llama() -> nn.Module:
    return AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, **WORDS, num_key_value_heads=2))


def units(model: nn.Module) -> dict[str, tuple[str, int]]:
    return {s.name: (s.kind, s.count) for s in find_units(model, every(model).layout(model))}


def t5() -> nn.Module:
    return T5EncoderModel(T5Config(d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2, vocab_size=20))


def bert() -> nn.Module:
    return BertModel(BertConfig(**SMALL, **WORDS))


def clip() -> nn.Module:
    return CLIPModel(CLIPConfig(text_config=SMALL | WORDS, vision_config={**SMALL, "image_size": 16, "patch_size": 8}))


def gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 4, "n_inner": 24, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=20, bos_token_id=1, eos_token_id=2)).eval()


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (gpt2, {("heads", 4), ("mlp", 24)}),
        (vit, {("heads", 4), ("mlp", 24)}),
        (llama, {("heads", 2), ("mlp", 24)}),
        (bert, {("heads", 4), ("mlp", 24)}),
        (t5, {("heads", 2), ("mlp", 24)}),
        (clip, {("heads", 4), ("mlp", 24)}),
    ],
)
def test_units_of_models_of_transformers(make, found):
    model = make()
    layout = mf.Adapter(groups={"all": r"layer|block|encoder|\.h\."}, exclude="head|pooler|embed").layout(model)
    stacks = find_units(model, layout)
    assert {(stack.kind, stack.count) for stack in stacks} == found
    assert {name for stack in stacks for name in stack.layers} == set(layout)


def test_heads_that_share_keys_and_values_go_together():
    model = llama()
    layout = mf.Adapter(groups={"all": r"layers\."}).layout(model)
    stack = next(s for s in find_units(model, layout) if s.kind == "heads")
    masks = stack.mask(layout, torch.tensor([True, False]))
    name = "model.layers.0.self_attn."
    assert (~masks[f"{name}q_proj"]).any(1).nonzero().flatten().tolist() == list(range(8, 16))
    assert (~masks[f"{name}k_proj"]).any(1).nonzero().flatten().tolist() == list(range(4, 8))
    assert (~masks[f"{name}o_proj"]).any(0).nonzero().flatten().tolist() == list(range(8, 16))


def test_units_of_a_model_of_ones_own():
    assert units(two_towers()) == {"text": ("mlp", 24), "vision": ("mlp", 24)}
    assert units(chain(4, 4, 4)) == {}
    for between, found in [(nn.ReLU(), True), (nn.Dropout(), True), (nn.LayerNorm(8), False), (nn.Softmax(-1), False)]:
        mlp = nn.Sequential(nn.Linear(4, 8), between, nn.Linear(8, 4))
        assert bool(units(nn.ModuleDict({"mlp": mlp}))) == found


def test_the_score_of_a_unit_is_the_sum_of_its_weights():
    model = vit(1)
    layout = mf.adapter_for(model).layout(model)
    scores = {name: torch.rand(layout[name].shape, generator=torch.Generator().manual_seed(1)) for name in layout}
    for stack in find_units(model, layout):
        totals = stack.total(scores)
        for unit in (0, stack.count - 1):
            kept = torch.ones(stack.count, dtype=torch.bool)
            kept[unit] = False
            masks = stack.mask(layout, kept)
            own = sum(float(scores[name][~mask].double().sum()) for name, mask in masks.items())
            assert float(totals[unit]) == pytest.approx(own)


@pytest.mark.parametrize("units", ["mlp", "heads", "all"])
def test_masks_drop_whole_units_in_the_shares_asked_for(units):
    model = vit()
    result = mf.prune_units(model, "magnitude", [0.25, 0.5], units=units)
    for share, masks in result.masks.items():
        for stack in find_units(model, masks.layout):
            gone = share if units in ("all", stack.kind) else 0.0
            for name in stack.rows:
                assert (~masks[name]).all(1).float().mean() == gone
            for name in stack.columns:
                assert (~masks[name]).all(0).float().mean() == gone
    assert result.weights is None
    assert "structured" in result.timings


def test_shares_of_groups(tiny):
    model = mf.load_model(tiny)
    result = mf.prune_units(model, "magnitude", {"vision": 0.5})
    (masks,) = result.masks.values()
    shares = masks.group_sparsities()
    assert shares["vision"] > 0
    assert shares["text"] == shares["fusion"] == 0


def stacks_of(*counts: int) -> list[UnitStack]:
    return [UnitStack(f"s{n}", "mlp", "g", count, {}, {}) for n, count in enumerate(counts)]


def test_the_lowest_of_the_model_go_but_one_of_each_stays():
    totals = {"s0": torch.tensor([1.0, 2.0, 3.0]), "s1": torch.tensor([9.0, 8.0, 0.5])}
    kept = choose_units(stacks_of(3, 3), totals, {"g": 0.5}, "global")
    assert {name: of.tolist() for name, of in kept.items()} == {"s0": [False, False, True], "s1": [True, True, False]}
    again = choose_units(stacks_of(3, 3), totals, {"g": 2 / 3}, "global")
    assert [int(of.sum()) for of in again.values()] == [1, 1]
    uniform = choose_units(stacks_of(3, 3), totals, {"g": 1 / 3}, "uniform")
    assert [of.tolist() for of in uniform.values()] == [[False, True, True], [True, True, False]]


def test_what_remains_makes_up_for_what_is_gone():
    model = vit()
    batches = [{"pixel_values": torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(n))} for n in (1, 2)]
    plain = mf.prune_units(model, "multiflow", 0.5, batches, compensate=False)
    fitted = mf.prune_units(model, "multiflow", 0.5, batches, ridge=1e-4)
    assert plain.masks[0.5] == fitted.masks[0.5]
    assert fitted.masks[0.5].settings["changes_weights"]
    errors = []
    truth = model(**batches[0]).logits
    for result in (plain, fitted):
        small = mf.compact(model, result.masks[0.5], result.weights and result.weights[0.5])
        errors.append(float((small(**batches[0]).logits - truth).square().mean().detach()))
    assert errors[1] < 0.5 * errors[0]


def test_the_model_is_left_as_it_is():
    model = vit()
    before = {name: p.clone() for name, p in model.named_parameters()}
    mf.prune_units(model, "magnitude", 0.5, [{"pixel_values": torch.randn(4, 3, 16, 16)}], units="all")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"share": 0.99}, "no neuron of its 24; give a smaller share"),
        ({"share": 0.9, "units": "heads"}, "no head of its 4"),
        ({"share": 1.0}, r"expected a number in \[0, 1\)"),
        ({"share": []}, r"share \[\] was given"),
        ({"share": None}, "share None was given"),
        ({"share": "0.5"}, "share '0.5' was given"),
        ({"share": [0.5, 1.0]}, "share 1.0 was given"),
        ({"share": {"vison": 0.5}}, "did you mean 'vision'"),
        ({"units": "mpl"}, "did you mean 'mlp'"),
        ({"allocation": "globl"}, "did you mean 'global'"),
        ({"method": "tamt"}, "no scores of single weights"),
        ({"ridge": 0.0}, "above 0"),
    ],
)
def test_bad_input(given, said):
    with pytest.raises(mf.MultiflowError, match=said):
        mf.prune_units(vit(), **{"method": "magnitude", "share": 0.5} | given)


def test_a_model_without_units_is_refused():
    model = chain(4, 4)
    with pytest.raises(mf.MultiflowError, match="no MLPs are recognised among the 1 layers"):
        mf.prune_units(model, "magnitude", 0.5, adapter=every(model))


class Mixed(nn.Module):
    """Fused attention, experts in one stack, and an MLP."""

    def __init__(self, mlp=True):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.experts = Experts()
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) if mlp else nn.Identity()

    def forward(self, x):
        return self.mlp(self.experts(self.attention(x, x, x)[0]))


class Experts(nn.Module):
    num_experts = 3

    def __init__(self):
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(3, 8, 16))
        self.down_proj = nn.Parameter(torch.randn(3, 16, 8))

    def forward(self, x):
        return torch.einsum("bth,ehi,eio->bto", x, self.up_proj, self.down_proj)


@pytest.mark.parametrize(
    ("units", "said"), [("mlp", "6 weights of experts in one stack"), ("all", "4 projections inside fused attention")]
)
def test_layers_that_keep_their_units_are_named(units, said):
    model, adapter = Mixed(), mf.Adapter(groups={"all": "."}, transposed="_proj$")
    with pytest.warns(UserWarning, match=said) as warned:
        result = mf.prune_units(model, "magnitude", 0.5, adapter=adapter, units=units)
    assert ("fused" in str(warned[0].message)) == (units == "all")
    whole = [name for name in result.masks[0.5] if not name.startswith("mlp")]
    assert all(result.masks[0.5].dropped(name) == 0 for name in whole)
    assert result.masks[0.5].dropped("mlp.0") == 64
    small = mf.compact(model, result.masks[0.5], adapter=adapter, batch=torch.randn(2, 3, 8))
    assert small.mlp[0].out_features == 8


def test_a_model_whose_units_are_all_parts_of_others_is_refused():
    model = Mixed(mlp=False)
    with pytest.raises(mf.MultiflowError, match="no MLPs .* 6 weights of experts in one stack, first 'experts.up_pr"):
        mf.prune_units(model, "magnitude", 0.5, adapter=mf.Adapter(groups={"all": "."}, transposed="_proj$"))
