"""Types beside those of docs/models.md whose texts and images lie in one sequence, or side by side in one layer."""

from __future__ import annotations

import pytest
import torch
import transformers

import multiflow as mf
from tests.families.automatic.contract import layer_inputs, moved_tokens, real_tokens, with_other_padding

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IDS = torch.tensor([[1, 5, 6, 7, 8, 2, 0, 0, 0], [1, 5, 6, 7, 8, 9, 10, 11, 2]])  # 15 of 18 are words
WORDS = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def flava():
    tower = {"image_size": 32, "patch_size": 8}
    parts = {"image_config": SIZES | tower, "text_config": SIZES | {"vocab_size": 60}, "multimodal_config": SIZES}
    config = transformers.FlavaConfig(**parts, hidden_size=16, projection_dim=8)
    return transformers.FlavaModel(config), {"pixel_values": drawn(2, 3, 32, 32)}


def lxmert():
    config = transformers.LxmertConfig(
        **{name: size for name, size in SIZES.items() if name != "num_hidden_layers"},
        **{"vocab_size": 60, "l_layers": 2, "x_layers": 1, "r_layers": 2, "visual_feat_dim": 12},
    )
    return transformers.LxmertModel(config), {"visual_feats": drawn(2, 5, 12), "visual_pos": drawn(2, 5, 4)}


def visual_bert():
    config = transformers.VisualBertConfig(**SIZES, vocab_size=60, visual_embedding_dim=12)
    seen = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return transformers.VisualBertModel(config), {"visual_embeds": drawn(2, 5, 12), "visual_attention_mask": seen}


def layoutlmv3():
    boxes = {"coordinate_size": 2, "shape_size": 4, "input_size": 32, "patch_size": 8, "max_2d_position_embeddings": 32}
    model = transformers.LayoutLMv3Model(transformers.LayoutLMv3Config(**SIZES, **boxes, vocab_size=60))
    return model, {"pixel_values": drawn(2, 3, 32, 32), "bbox": torch.zeros(2, 9, 4, dtype=torch.long)}


KINDS = {  # groups, and how many tokens their layers count
    flava: {"text": {15}, "vision": {34}, "fusion": {2 * 18 + 15}, "connector": {15, 34}},
    lxmert: {"text": {15}, "vision": {10}, "fusion": {10, 15, 25}, "connector": {10}},
    visual_bert: {"fusion": {15 + 8}, "connector": {8}},
    layoutlmv3: {"fusion": {15 + 2 * 17}},
}


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def make(request):
    return request.param


def test_padding_is_left_out_and_nothing_else(make):
    torch.manual_seed(0)
    model, images = make()
    model, batch = model.eval(), WORDS | images
    adapter = mf.adapter_for(model)
    result = mf.prune(model, "wanda", 0.5, [batch])
    counts = result.stats.counts["input_norm"]
    found = {group: {counts[of.name] for of in layers} for group, layers in result.masks[0.5].layout.groups.items()}
    assert found == KINDS[make]
    moved = moved_tokens(model, adapter, batch, with_other_padding(batch))
    inputs = layer_inputs(model, adapter, batch)
    for name in counts:
        for value, changed in zip(inputs[name], moved[name], strict=True):
            assert not (changed & real_tokens(adapter, batch, name, value)).any()


def test_texts_as_long_as_their_images_are_refused_where_one_layer_takes_both():
    model, images = lxmert()
    batch = {name: value[:, :5] for name, value in WORDS.items()} | images
    batch["attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with pytest.raises(mf.MultiflowError, match="different lengths"):
        mf.prune(model.eval(), "wanda", 0.5, [batch])


def test_what_answers_without_looking_at_its_last_image_layers_is_said():
    config = lxmert()[0].config
    model = transformers.LxmertForQuestionAnswering(config).eval()
    with pytest.warns(UserWarning, match=r"depends on 6 of .*visn_self_att"):
        result = mf.prune(model, "wanda", 0.5, [WORDS | lxmert()[1]])
    assert not [name for name in result.masks[0.5] if "x_layers.0.visn" in name]


def test_a_loss_of_pairs_that_a_model_does_not_have_is_refused():
    model, images = flava()
    with pytest.raises(mf.MultiflowError, match="compares no texts with images"):
        mf.prune(model.eval(), "snip", 0.5, [WORDS | images])


def test_a_codebook_only_makes_tokens():
    with torch.device("meta"):
        model = transformers.FlavaForPreTraining(transformers.FlavaConfig())
    groups = mf.adapter_for(model).layout(model).groups
    assert {group: len(of) for group, of in groups.items()} == {"text": 72, "vision": 72, "fusion": 36, "connector": 2}
