"""Recovery of families of models that nothing in it knows: sub-blocks found in each, and better for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.recovery.parts import find_parts
from tests.families.automatic import tiny as automatic
from tests.tiny import FAMILIES, TOKENIZER, shapes_model


def own(family):
    """A tiny X-VLM or BLIP, and batches for it."""
    model = shapes_model(FAMILIES[family], len(TOKENIZER))
    torch.manual_seed(0)
    batches = []
    for _ in range(3):
        ids = torch.randint(5, 60, (4, 7))
        mask = (torch.arange(7) < torch.tensor([[7], [5], [4], [7]])).long()
        batch = {"pixel_values": torch.randn(4, 3, 24, 24), "input_ids": ids, "attention_mask": mask}
        if family == "xvlm":
            positions, labels = torch.tensor([[1, 2]] * 4), torch.tensor([[7, 8], [9, -100]] * 2)
            batch |= {"mlm_input_ids": ids.clone(), "mlm_positions": positions, "mlm_labels": labels}
        batches.append(batch)
    return model.eval(), batches


def of_transformers(kind, name):
    model, batches = automatic.build(kind, name), []
    for seed in range(3):
        batch = automatic.batch(model)
        torch.manual_seed(seed)
        batches.append({key: x + torch.randn(x.shape) if x.is_floating_point() else x for key, x in batch.items()})
    return model, batches


MODELS = {
    "xvlm": lambda: own("xvlm"),
    "blip": lambda: own("blip"),
    "clip": lambda: of_transformers("clip", "CLIPModel"),
    "blip-2": lambda: of_transformers("blip-2", "Blip2ForConditionalGeneration"),  # with a cache
    "aria": lambda: of_transformers("aria", "AriaForConditionalGeneration"),  # with experts
    "florence2": lambda: of_transformers("florence2", "Florence2ForConditionalGeneration"),  # windows, two towers
}


@pytest.mark.filterwarnings("ignore:.*are no linear layers and stay dense:UserWarning")  # Aria's experts
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("how", ["blocks", "distill"])
def test_any_family_is_recovered(kind, how):
    model, batches = MODELS[kind]()
    result = mf.prune(model, "magnitude", 0.6)
    found = mf.recover(model, result, 0.6, batches, how, epochs=4, lr=0.005)
    (report,) = found.settings["recovery"]
    loss = report["distillation"]
    assert loss["after"] < loss["before"]
    if how == "blocks":
        errors = report["ways"][0]["parts"].values()
        assert all(after <= before for before, after in errors)
        assert sum(after < before for before, after in errors) > len(errors) / 2
    assert all(not found.weights[0.6][name][~mask].any() for name, mask in found.masks[0.6].items())


def parts_of(model, batch):
    adapter = mf.adapter_for(model)
    with torch.no_grad():
        return find_parts(model, adapter.layout(model), lambda: (adapter.outputs or adapter.forward)(model, batch))


def test_the_parts_of_xvlm_are_attention_cross_attention_and_mlp():
    model, batches = own("xvlm")
    parts = {part.name: part for part in parts_of(model, batches[0])}
    at = "text_encoder.bert.encoder.layer.1"
    assert [name for name in parts if name.startswith(at)] == [
        f"{at}.attention",
        f"{at}.crossattention",
        f"{at}.intermediate",
    ]
    assert parts[f"{at}.intermediate"].layers == (f"{at}.intermediate.dense", f"{at}.output.dense")
    assert f"{at}.output.LayerNorm.weight" in parts[f"{at}.intermediate"].parameters
    at = "vision_encoder.encoder.layers.0"
    attention = parts[f"{at}.self_attn"]
    assert f"{at}.layer_norm1.weight" in attention.parameters  # the norm before it
    assert (attention.ends[0].path, attention.ends[0].is_input) == (f"{at}.layer_norm2", True)  # the residual stream


def test_parts_of_blip_that_share_a_weight_are_fitted_wherever_it_is_used():
    model, batches = own("blip")
    parts = {part.name: part for part in parts_of(model, batches[0])}
    blocks = ("text_encoder.encoder.layer.0", "text_decoder.bert.encoder.layer.0")
    assert parts["text_encoder.encoder.layer.0.crossattention"].blocks == blocks
    assert parts["text_encoder.encoder.layer.0.intermediate"].blocks == blocks
    assert parts["text_encoder.encoder.layer.0.attention"].blocks == blocks[:1]
    assert parts["text_decoder.bert.encoder.layer.0.attention"].blocks == blocks[1:]


def test_every_layer_that_runs_is_in_one_part_and_no_parameter_in_two():
    for kind in ("xvlm", "blip", "clip"):
        model, batches = MODELS[kind]()
        parts = parts_of(model, batches[0])
        layers = [name for part in parts for name in part.layers]
        parameters = [name for part in parts for name in part.parameters]
        assert sorted(layers) == sorted(mf.adapter_for(model).layout(model))
        assert len(parameters) == len(set(parameters))


def test_an_encoder_of_torch_is_taken_apart_too():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    adapter = mf.Adapter(groups={"all": r"linear\d$"})
    batches = [torch.randn(3, 5, 8) for _ in range(4)]
    result = mf.prune(model, "magnitude", 0.5, adapter=adapter)
    (report,) = mf.recover(model, result, 0.5, batches, adapter=adapter, epochs=2).settings["recovery"]
    assert list(report["ways"][0]["parts"]) == ["layers.0", "layers.1"]
