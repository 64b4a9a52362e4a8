"""What layers see of examples in one batch, padded and packed, is what they see of each example by itself."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import multiflow as mf
from multiflow.data.examples import Sample
from multiflow.families.automatic.processors import load_processor
from multiflow.families.automatic.reading import reader_of
from tests.families.automatic.processors import TORCHVISION

SIZES = ((40, 20), (64, 64), (20, 50))
TEXTS = ("a red square", "two dots on a table, and more", "x")
SINGLE = ("clip", "siglip2", "git", "kosmos_2", "instructblip")
SEVERAL = (
    "llava",
    "qwen2_5_vl",
    "smolvlm",
    "internvl",
    "llava_next",
    "mllama",
    *["pixtral"] * TORCHVISION,
)  # images in a conversation


def opened(vlm, kind):
    model = mf.load_model(vlm(kind))
    return model, reader_of(model, load_processor(None, str(vlm(kind)), model))


def drawn(*sizes):
    noise = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(torch.randint(256, (height, width, 3), generator=noise, dtype=torch.uint8).numpy())
        for width, height in sizes
    ]


def check_same(model, whole, single, **options):
    adapter = mf.adapter_for(model, **options)
    one, other = (mf.calibrate(model, batches, adapter=adapter) for batches in ([whole], single))
    assert one.counts["input_norm"] == other.counts["input_norm"]
    for name, norm in one["input_norm"].items():
        if name.endswith("cross_attn.o_proj"):  # before its first image a token of Mllama looks at all that fills up
            continue
        torch.testing.assert_close(norm, other["input_norm"][name], rtol=1e-3, atol=1e-5)
    return one.counts["input_norm"]


@pytest.mark.parametrize("kind", SINGLE)
def test_examples_of_several_sizes(vlm, kind):
    model, reader = opened(vlm, kind)
    examples = [Sample(image, text) for image, text in zip(drawn(*SIZES), TEXTS, strict=True)]
    check_same(model, reader.examples(examples), [reader.examples([example]) for example in examples])


@pytest.mark.parametrize("kind", SEVERAL)
def test_conversations_with_several_images(vlm, kind):
    model, reader = opened(vlm, kind)
    images = drawn(*SIZES, (33, 33))
    asked = [[1, "And", 1, "of which size?"], [1, "x"], [1, "is it?"]]
    parts = [[{"type": "image"} if part == 1 else {"type": "text", "text": part} for part in of] for of in asked]
    turns = [[{"role": "user", "content": content}] for content in parts]
    shown = [images[:2], images[2:3], images[3:]]
    whole = reader.conversations(turns, shown)
    single = [reader.conversations([turn], [of]) for turn, of in zip(turns, shown, strict=True)]
    found = {tokens: check_same(model, whole, single, tokens=tokens) for tokens in ("all", "text", "image")}
    layer = next(layer.name for layer in mf.adapter_for(model).layout(model).groups["text"])
    assert found["all"][layer] == int(whole["attention_mask"].sum())
    assert found["all"][layer] == found["text"][layer] + found["image"][layer]
    assert 0 < found["image"][layer] < found["all"][layer]


def test_what_fills_a_tile_up_is_no_patch_where_all_tiles_are_real_too(vlm):
    model, reader = opened(vlm, "mllama")
    batch = reader.examples([Sample(image, "x") for image in drawn((64, 64))])
    assert batch["aspect_ratio_mask"].all()
    counts = mf.calibrate(model, [batch]).counts["input_norm"]
    vision, tiles = model.config.vision_config, batch["aspect_ratio_mask"].numel()
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    assert counts["model.vision_model.transformer.layers.0.mlp.fc1"] == tiles * patches
