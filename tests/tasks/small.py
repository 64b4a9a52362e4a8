"""A tiny X-VLM and a tiny BLIP on Shapes, shared by the tests of the tasks."""

from __future__ import annotations

from dataclasses import replace

from multiflow.worlds.shapes.pretrain import PretrainSettings

SMALL = PretrainSettings(
    image_size=24,
    patch_size=8,
    width=16,
    heads=2,
    vision_layers=2,
    text_layers=1,
    fusion_layers=1,
    vision_mlp=32,
    text_mlp=32,
    embed_dim=8,
    vision_steps=4,
    vision_batch_size=6,
    steps=8,
    batch_size=6,
    region_every=4,
    precision="fp32",
    checkpoint_every=3,
    test_scenes=12,
)
SMALL_BLIP = replace(SMALL, family="blip")
FAMILIES = {"xvlm": SMALL, "blip": SMALL_BLIP}
