from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

import multiflow as mf
from tests.small import ADAPTER, chain, every, two_towers


def layout(model, exclude=None, **groups):
    return mf.Adapter(groups=groups, exclude=exclude).layout(model)


def test_layers_come_in_module_order_with_shape_group_stream_and_aliases():
    found = ADAPTER.layout(two_towers())
    assert list(found.groups) == ["text", "vision", "shared"]
    assert found["text.0"] == mf.Layer("text.0", (24, 16), "text", "text")
    assert found["vision.0"].stream is None
    assert found["text_out"] == mf.Layer("text_out", (16, 16), "shared", "text", ("vision_out",))
    assert found.size == 4 * 16 * 24 + 16 * 16


def test_layers_in_no_group_stay_dense_and_excluded_ones_too():
    found = layout(two_towers(), text="text", exclude=r"text\.2")
    assert list(found) == ["text.0", "text_out"]


def test_an_alias_outside_all_groups_still_counts_as_a_user():
    found = layout(two_towers(), vision="^vision")
    assert list(found) == ["vision.0", "vision.2", "vision_out"]
    assert found["vision_out"].aliases == ("text_out",)


def test_three_modules_of_one_weight_of_which_the_first_is_in_no_group():
    model = chain(4, 4, 4, 4)
    model[1].weight = model[2].weight = model[0].weight
    found = layout(model, later=r"^[12]$")
    assert [(layer.name, layer.aliases) for layer in found.layers] == [("1", ("0", "2"))]


def test_a_group_without_layers_says_what_there_is():
    with pytest.raises(
        mf.MultiflowError,
        match=r"'vison' .*text \(2 layers\); .*'text.0'.*mean 'vision'",
    ):
        layout(two_towers(), text=r"^text\.", v="vison")


def test_a_path_in_two_groups_is_named():
    with pytest.raises(mf.MultiflowError, match=r"layer 'text.0' is in two groups, 'a' and 'b'"):
        layout(two_towers(), a="text", b=r"\.0$")


def test_a_shared_weight_in_two_groups_is_named():
    with pytest.raises(mf.MultiflowError, match="with 'vision_out' .* two groups"):
        layout(two_towers(), text="^text", vision="^vision")


def test_a_linear_layer_tied_to_an_embedding_is_named():
    model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "head": nn.Linear(4, 8)})
    model["head"].weight = model["embed"].weight
    with pytest.raises(mf.MultiflowError, match=r"'head' shares its weight with 'embed', .*exclude=r'\^head\$'"):
        layout(model, all=".")


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(3, 4, 4))


class Stack(nn.Module):
    """Matrices that nobody calls experts."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Parameter(torch.zeros(3, 4, 4))


class Tower(nn.Module):
    """What a vision tower holds besides linear layers; none of it is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.position_embedding = nn.Parameter(torch.zeros(5, 4))
        self.norm = nn.LayerNorm(4)
        self.batch_norm = nn.BatchNorm2d(4)
        self.words = nn.Embedding(8, 4)
        self.scale = nn.Parameter(torch.zeros(()))
        self.layer = nn.Linear(4, 4)


class MaskedLinear(nn.Module):
    """A projection, though its name holds a word that embeddings and tables have in theirs."""

    def __init__(self, name: str = "weight") -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(4, 4)))


class ClassProjection(MaskedLinear):
    pass


class TransposedLinear(MaskedLinear):
    pass


class RotaryEmbedding(MaskedLinear):
    pass


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (MaskedLinear(), r"'x' is a MaskedLinear with the weight 'weight' \(4, 4\), which is no nn.Linear"),
        (ClassProjection("kernel"), r"'x' is a ClassProjection with the weight 'kernel'"),
        (TransposedLinear("compose"), r"'x' is a TransposedLinear with the weight 'compose'"),
        (Stack(), r"'x' is a Stack with the weight 'blocks' \(3, 4, 4\), which is no nn.Linear"),
    ],
)
def test_what_is_no_linear_layer_is_never_skipped_without_a_word(module, message):
    model = nn.ModuleDict({"x": module, "y": nn.Linear(4, 4)})
    with pytest.raises(mf.MultiflowError, match=message):
        layout(model, all=".")
    assert list(layout(model, all=".", exclude="x")) == ["y"]


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (Conv1D(6, 4), {"x": (6, 4)}),
        (Experts(), {f"x.gate_up_proj.{i}": (4, 4) for i in range(3)}),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
            {"x.q_proj": (4, 4), "x.k_proj": (4, 3), "x.v_proj": (4, 5), "x.out_proj": (4, 4)},
        ),
        (nn.MultiheadAttention(4, 2), {f"x.{which}": (4, 4) for which in ("q_proj", "k_proj", "v_proj", "out_proj")}),
    ],
)
def test_weights_that_lie_in_a_part_of_a_parameter_are_layers(module, shapes):
    model = nn.ModuleDict({"x": module, "y": nn.Linear(4, 4)})
    found = layout(model, all=r"^x(\.|$)", rest="^y")
    assert {name: layer.shape for name, layer in found.items() if name != "y"} == shapes
    assert list(layout(model, all=".", exclude="x")) == ["y"]
    some = list(shapes)[-1]
    assert some not in layout(model, all=".", exclude=f"^{some}$")
    assert list(layout(model, all=f"^{some}$")) == [some]


def test_parts_that_modules_share_are_one_layer():
    model = nn.ModuleDict({name: nn.MultiheadAttention(4, 2) for name in "ab"})
    model["b"].in_proj_weight = model["a"].in_proj_weight
    found = layout(model, all=".")
    assert list(found) == ["a.q_proj", "a.k_proj", "a.v_proj", "a.out_proj", "b.out_proj"]
    assert found["a.k_proj"].aliases == ("b.k_proj",)


class Gated(nn.Module):
    """Experts that keep their weights transposed, and say so by nothing but their sizes."""

    def __init__(self, *shapes: tuple[int, int], **sizes: int) -> None:
        super().__init__()
        self.num_experts = 3
        vars(self).update(sizes)
        for number, shape in enumerate(shapes):
            self.register_parameter(f"w{number}", nn.Parameter(torch.zeros(3, *shape)))


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (Gated((8, 6), (6, 4)), [(8, 6), (6, 4)]),  # gate and up in one, then down
        (Gated((6, 8), (4, 6)), [(8, 6), (6, 4)]),
        (Gated((5, 6), (6, 5), (5, 6)), [(5, 6), (6, 5), (5, 6)]),  # both ways fit: (out, in)
        (Gated((6, 5), (5, 6), (6, 5), hidden_size=6), [(5, 6), (6, 5), (5, 6)]),  # both fit, but for the size
    ],
)
def test_how_a_stack_is_stored_is_told_by_its_sizes(module, shapes):
    found = layout(nn.ModuleDict({"x": module}), all=".")
    assert [found[f"x.w{number}.0"].shape for number in range(len(shapes))] == shapes


def test_how_a_stack_is_stored_may_be_declared():
    model = nn.ModuleDict({"x": Gated((5, 6), (6, 5))})
    found = mf.Adapter(groups={"all": "."}, transposed=r"w\d$").layout(model)
    assert found["x.w0.2"].shape == (6, 5)


@pytest.mark.parametrize(
    "module",
    [
        MaskedLinear("query_tokens"),
        MaskedLinear("relative_position_bias_table"),
        MaskedLinear("pos"),
        RotaryEmbedding(),
    ],
)
def test_tables_are_told_by_the_name_of_the_parameter_and_embeddings_by_their_class(module):
    assert list(layout(nn.ModuleDict({"x": module, "y": nn.Linear(4, 4)}), all=".")) == ["y"]


def test_embeddings_norms_and_convolutions_stay_dense():
    assert list(layout(nn.ModuleDict({"tower": Tower()}), vision="tower")) == ["tower.layer"]


def test_quantised_weights_are_refused():
    model = chain(4, 4)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        model[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=dtype), requires_grad=False)
        with pytest.raises(mf.MultiflowError, match=rf"weights of {dtype}; expected floating point of 16 bits or more"):
            every(model).layout(model)


def test_a_model_without_linear_layers():
    with pytest.raises(mf.MultiflowError, match=r"the model has none"):
        layout(nn.ReLU(), all=".")


@pytest.mark.parametrize("fields", [{"groups": {"a": "("}}, {"groups": {"a": "."}, "exclude": "["}])
def test_a_broken_regex(fields):
    with pytest.raises(mf.MultiflowError, match="is not a regular expression"):
        mf.Adapter(**fields)


def test_no_groups():
    with pytest.raises(mf.MultiflowError, match="at least one group"):
        mf.Adapter(groups={})


def test_a_weight_that_is_no_parameter_is_named():
    model = chain(4, 4)
    prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(mf.MultiflowError, match=r"'0' computes its weight from other tensors.*exclude=r'\^0\$'"):
        every(model).layout(model)


def test_an_excluded_path_that_shares_the_weight_of_a_layer_is_an_error():
    with pytest.raises(mf.MultiflowError, match="'text_out' .* 'vision_out', .*dense"):
        layout(two_towers(), all=r"^text", exclude="vision_out")


@pytest.mark.parametrize(
    "fields", [{"streams": {"txt": "text"}, "token_masks": lambda batch: {"text": None}}, {"exclude": "txt"}]
)
def test_a_regex_of_streams_or_exclude_that_matches_nothing(fields):
    with pytest.raises(mf.MultiflowError, match="'txt' of (streams|exclude) .* mean 'text'"):
        mf.Adapter(groups={"text": "text"}, **fields).layout(two_towers())


def test_streams_without_token_masks():
    with pytest.raises(mf.MultiflowError, match=r"streams \['text'\] needs token_masks=f\(batch\)"):
        mf.Adapter(groups={"text": "text"}, streams={"text": "text"})


def test_an_adapter_that_is_none():
    with pytest.raises(mf.MultiflowError, match="adapter is a dict; expected an mf.Adapter"):
        mf.prune(two_towers(), "magnitude", 0.5, adapter={"text": "text"})


def test_weights_that_are_not_made_yet():
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(mf.MultiflowError, match="'0' is a LazyLinear .*; run the model"):
        every(model).layout(model)
    model(torch.ones(2, 3))
    assert every(model).layout(model)["0"].shape == (4, 3)


def test_weights_that_were_made_in_inference_mode():
    with torch.inference_mode():
        model = chain(4, 4)
    with pytest.raises(mf.MultiflowError, match=r"'0' was made inside torch.inference_mode\(\).*exclude=r'\^0\$'"):
        every(model).layout(model)


def test_a_layout_needs_no_values():
    assert every(chain(4, 3)).layout(chain(4, 3).to("meta")) == every(chain(4, 3)).layout(chain(4, 3))
