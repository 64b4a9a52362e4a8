"""Pretraining of a small X-VLM on the Shapes world, from random weights to a folder that ``from_pretrained`` loads.

Two stages, both through the one training loop. *vision*: the tower learns what covers each patch (see ``warmup.py``).
*joint*: X-VLM's losses ITC + ITM + MLM on pairs of a picture and a caption, and every ``region_every`` th step the same
on region captions, with the box losses. The first steps show scenes of one object, then of two, then of all sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multiflow.data import build_word_tokenizer, collate_pairs, collate_regions, to_pixels
from multiflow.data.shapes import VOCABULARY, Scene, describe, make_scenes, regions, render
from multiflow.errors import MultiflowError
from multiflow.models.xvlm import XVLMConfig, XVLMForPretraining
from multiflow.tasks.progress import Report
from multiflow.tasks.train import Batch, Precision, Trained, TrainSettings, seed_at, train
from multiflow.tasks.warmup import PatchClassifier, patch_labels, patch_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CURRICULUM = ((0.04, 1), (0.10, 2), (1.0, 4))  # until this share of the joint steps: at most so many objects
MAX_TOKENS = 40


@dataclass(frozen=True)
class PretrainSettings:
    """Model, data and schedule of a pretraining run on Shapes.

    Args:
        image_size: side of the pictures in pixels.
        patch_size: side of a patch in pixels.
        width: width of both towers.
        heads: attention heads of both towers.
        vision_layers: layers of the vision tower; the last half of them can look at regions.
        text_layers: layers that see the text alone.
        fusion_layers: layers that see text and image.
        vision_mlp: hidden width of the MLPs of the vision tower.
        text_mlp: hidden width of the MLPs of the text and fusion layers.
        embed_dim: width of the contrastive features.
        batch_size: pairs a step.
        vision_steps: steps of the warm-up of the vision tower.
        vision_lr: highest learning rate of the warm-up.
        steps: steps of the joint training.
        lr: highest learning rate of the joint training.
        weight_decay: of matrices and embeddings.
        region_every: every so many joint steps the batch is one of region captions; 0: never.
        precision: ``auto`` is bfloat16 where the device is faster in it; weights stay float32.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of weights, scenes, captions, masks and negatives.
        checkpoint_every: steps between checkpoints.
    """

    image_size: int = 48
    patch_size: int = 8
    width: int = 192
    heads: int = 6
    vision_layers: int = 4
    text_layers: int = 2
    fusion_layers: int = 2
    vision_mlp: int = 768
    text_mlp: int = 576
    embed_dim: int = 128
    batch_size: int = 128
    vision_steps: int = 600
    vision_lr: float = 2e-3
    steps: int = 3600
    lr: float = 1e-3
    weight_decay: float = 0.02
    region_every: int = 4
    precision: Precision = "auto"
    device: str = "cpu"
    seed: int = 0
    checkpoint_every: int = 100


def shapes_tokenizer() -> PreTrainedTokenizerBase:
    """Return the tokenizer of the Shapes language: one token a word."""
    return build_word_tokenizer([*VOCABULARY, ",", "?"])


def shapes_model(settings: PretrainSettings, vocab_size: int) -> XVLMForPretraining:
    """Build the model with random weights that depend on the seed alone."""
    vision = {"width": settings.width, "heads": settings.heads, "mlp": settings.vision_mlp, "act": "gelu"}
    text = {"width": settings.width, "heads": settings.heads, "mlp": settings.text_mlp, "vocab_size": vocab_size}
    config = XVLMConfig(
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        embed_dim=settings.embed_dim,
        vision=vision | {"layers": settings.vision_layers, "local_attn_depth": settings.vision_layers // 2},
        text=text
        | {"layers": settings.text_layers + settings.fusion_layers, "fusion_layer": settings.text_layers}
        | {"max_position_embeddings": MAX_TOKENS, "dropout": 0.0},
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        return XVLMForPretraining(config)


def pictures(scenes: list[Scene], size: int) -> Tensor:
    """Render scenes as normalised pixels ``(scenes, 3, size, size)``."""
    return torch.from_numpy(to_pixels([render(scene, size) for scene in scenes], size))


def vision_batch(settings: PretrainSettings, position: int) -> Batch:
    """Return pictures and the labels of their patches; a pure function of its arguments."""
    scenes = make_scenes("train", settings.batch_size, seed=settings.seed, start=position * settings.batch_size)
    labels = patch_labels(scenes, settings.image_size // settings.patch_size)
    return {"pixel_values": pictures(scenes, settings.image_size), "labels": torch.from_numpy(labels)}


def joint_batch(settings: PretrainSettings, tokenizer: PreTrainedTokenizerBase, position: int) -> Batch:
    """Return a batch of pairs, or every ``region_every`` th time of regions; a pure function of its arguments.

    A region batch has half as many pictures, with up to two regions each.
    """
    done = position / settings.steps
    most = next(objects for until, objects in CURRICULUM if done < until)
    start = (settings.vision_steps + position) * settings.batch_size
    options: dict[str, Any] = {"tokenizer": tokenizer, "image_size": settings.image_size, "max_length": MAX_TOKENS}
    options |= {"seed": settings.seed, "position": position}
    if settings.region_every and position % settings.region_every == settings.region_every - 1:
        scenes = make_scenes("train", settings.batch_size // 2, seed=settings.seed, start=start, max_objects=most)
        images = [render(scene, settings.image_size) for scene in scenes]
        named = [[(text, _pixel_box(box, settings.image_size)) for text, box in regions(scene)[:2]] for scene in scenes]
        return collate_regions(images, named, patch_size=settings.patch_size, **options)
    scenes = make_scenes("train", settings.batch_size, seed=settings.seed, start=start, max_objects=most)
    images = [render(scene, settings.image_size) for scene in scenes]
    return collate_pairs(images, [describe(scene, 1)[0] for scene in scenes], **options)


def _pixel_box(box: tuple[float, float, float, float], size: int) -> tuple[float, float, float, float]:
    cx, cy, width, height = (size * x for x in box)
    return cx - width / 2, cy - height / 2, width, height


def train_vision(model: XVLMForPretraining, settings: PretrainSettings, run_dir: Path, **options: Any) -> Trained:
    """Warm up the vision tower."""

    def loss(classifier: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        return patch_loss(classifier(batch["pixel_values"]), batch["labels"])

    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        classifier = PatchClassifier(model).to(settings.device)
    plan = _plan(settings, settings.vision_steps, settings.vision_lr)
    return train(classifier, lambda position: vision_batch(settings, position), loss, plan, run_dir, **options)


def train_joint(
    model: XVLMForPretraining,
    tokenizer: PreTrainedTokenizerBase,
    settings: PretrainSettings,
    run_dir: Path,
    **options: Any,
) -> Trained:
    """Train the whole model with X-VLM's losses."""

    def loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        out = model(**batch, seed=seed_at(settings.seed, position))
        where = "region_" if "image_index" in batch else ""
        return out.loss, {where + name: value for name, value in out.items() if name.startswith("loss_")}

    plan = _plan(settings, settings.steps, settings.lr)
    return train(model, lambda position: joint_batch(settings, tokenizer, position), loss, plan, run_dir, **options)


def _plan(settings: PretrainSettings, steps: int, lr: float) -> TrainSettings:
    return TrainSettings(
        steps,
        lr,
        weight_decay=settings.weight_decay,
        warmup=0.05,
        precision=settings.precision,
        seed=settings.seed,
        checkpoint_every=settings.checkpoint_every,
    )
