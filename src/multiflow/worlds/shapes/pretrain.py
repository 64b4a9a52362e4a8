"""Pretraining of a small model on Shapes, from random weights to a folder that ``from_pretrained`` loads.

Two stages, both through the one training loop. *vision*: the tower learns what covers each patch (see ``warmup.py``).
*joint*: the losses of the family on pairs of a picture and a caption, and where it learns from them, every
``region_every`` th step on region captions; what a family does in its own way is its `Recipe`. The first steps show
scenes of one object, then of two, then of all sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from multiflow.base.progress import Report
from multiflow.base.runs import run_folder
from multiflow.base.strict import flags
from multiflow.data import collate_pairs, collate_regions
from multiflow.data.sampling import seed_at
from multiflow.families import FAMILIES
from multiflow.families.pairs import PairModel, recipe_of
from multiflow.tasks.task import Batch
from multiflow.training.loop import Trained, train
from multiflow.worlds.folder import trained_on
from multiflow.worlds.shapes import describe, make_scenes, regions, render
from multiflow.worlds.shapes.models import (
    MAX_TOKENS,
    Pretraining,
    shapes_model,
    shapes_tokenizer,
)
from multiflow.worlds.shapes.release import release
from multiflow.worlds.shapes.warmup import train_vision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FREE_TO_CHANGE = ("checkpoint_every", "test_scenes")  # these do not alter the weights of a run
KEEP = ("*/step-*", "model")  # what makes a run that failed worth keeping
CURRICULUM = ((0.04, 1), (0.10, 2), (1.0, 4))  # until this share of the joint steps: at most so many objects


def pretrain(
    settings: Pretraining, out_dir: Path, *, resume: bool = False, progress: Report | None = None
) -> dict[str, float]:
    """Pretrain a model on Shapes and write the model, ready to load, to ``out_dir/model``.

    Args:
        settings: see `Pretraining`.
        out_dir: holds ``settings.json``, a folder with checkpoints and metrics for each stage, and the model.
        resume: go on where an interrupted run of the same settings stopped.
        progress: called with a `Progress` after every step.

    Returns:
        Figures of the stored model, see `evaluate_shapes`.

    Raises:
        MultiflowError: the folder holds another run, or training diverged.

    >>> figures = pretrain(Pretraining(steps=100), Path("runs/try"))  # doctest: +SKIP
    """
    out_dir = Path(out_dir)
    with run_folder(out_dir, settings, resume=resume, free=FREE_TO_CHANGE, keep=KEEP):
        tokenizer = shapes_tokenizer(settings.family)
        model = shapes_model(settings, len(tokenizer))
        nn.Module.to(model, settings.device)
        options: dict[str, Any] = {"resume": resume, "progress": progress}
        vision = train_vision(model, settings, out_dir / "vision", **options)
        joint = train_joint(model, tokenizer, settings, out_dir / "joint", **options)

        facts = _facts(settings, vision, joint)
        figures = release(model, tokenizer, out_dir / "model", facts, scenes=settings.test_scenes, seed=settings.seed)
        (out_dir / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def train_joint(
    model: PairModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: Pretraining,
    run_dir: Path,
    **options: Any,
) -> Trained:
    """Train the whole model with the losses of its family."""
    recipe = recipe_of(settings.family)
    recipe.begin(model)

    def loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        out = model(**batch, **recipe.options(model, position / settings.steps), seed=seed_at(settings.seed, position))
        where = "region_" if "image_index" in batch else ""
        return out.loss, {where + name: value for name, value in out.items() if name.startswith("loss_")}

    plan = settings.stage(settings.steps, settings.lr)
    return train(model, lambda position: joint_batch(settings, tokenizer, position), loss, plan, run_dir, **options)


def joint_batch(settings: Pretraining, tokenizer: PreTrainedTokenizerBase, position: int) -> Batch:
    """Return a batch of pairs or, for a family that learns from them, every ``region_every`` th time of regions.

    A region batch has half as many pictures, with up to two regions each.
    """
    recipe = recipe_of(settings.family)
    done = position / settings.steps
    most = next((objects for until, objects in CURRICULUM if done < until), CURRICULUM[-1][1])
    start = settings.vision_steps * settings.vision_batch_size + position * settings.batch_size
    options: dict[str, Any] = {"tokenizer": tokenizer, "image_size": settings.image_size, "max_length": MAX_TOKENS}
    options |= {"seed": settings.seed, "position": position}
    every = settings.region_every if recipe.regions else 0
    if every and position % every == every - 1:
        scenes = make_scenes("train", settings.batch_size // 2, seed=settings.seed, start=start, max_objects=most)
        images = [render(scene, settings.image_size) for scene in scenes]
        named = [[(text, _pixel_box(box, settings.image_size)) for text, box in regions(scene)[:2]] for scene in scenes]
        return collate_regions(images, named, patch_size=settings.patch_size, **options)
    scenes = make_scenes("train", settings.batch_size, seed=settings.seed, start=start, max_objects=most)
    images = [render(scene, settings.image_size) for scene in scenes]
    texts = FAMILIES[settings.family].texts
    options |= {"mlm": recipe.masked, "end": texts is not None and texts.ends}
    return collate_pairs(images, [describe(scene, 1)[0] for scene in scenes], **options)


def _pixel_box(box: tuple[float, float, float, float], size: int) -> tuple[float, float, float, float]:
    cx, cy, width, height = (size * x for x in box)
    return cx - width / 2, cy - height / 2, width, height


def _facts(settings: Pretraining, vision: Trained, joint: Trained) -> dict[str, object]:
    """Return the rows of the model card that tell how the model was made."""
    s = settings
    pictures, pairs = s.vision_batch_size * vision.steps, s.batch_size * joint.steps
    layers, losses = recipe_of(s.family).describe(s)
    return {
        "architecture": f"{s.image_size} px in patches of {s.patch_size}, width {s.width}, "
        f"{s.vision_layers} vision layers, {layers}",
        "data": 'Shapes, style "plain", split "train", drawn on the fly; scenes of the test split are never shown',
        "vision warm-up": f"{vision.steps:,} steps of {s.vision_batch_size}, {pictures:,} pictures with labels",
        "training": f"{joint.steps:,} steps of {s.batch_size}, {pairs:,} pairs in all: {losses}",
        "optimizer": f"AdamW, learning rates {s.vision_lr:g} and {s.lr:g}, weight decay {s.weight_decay:g}, cosine",
        "seed": s.seed,
        "time": trained_on(vision.seconds + joint.seconds, s.device),
        "command": f"`multiflow pretrain OUT_DIR{flags(s)}`",
    }
