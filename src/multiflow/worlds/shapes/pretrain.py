"""Pretraining of a small model on Shapes, from random weights to a folder that ``from_pretrained`` loads.

Two stages, both through the one training loop. *joint*: the losses of the family on pairs of a picture and a caption,
and where it learns from them, every ``region_every`` th step on region captions; what a family does in its own way is
its `Recipe`. The first steps show scenes of one object, then of two, then of all sizes.

*vision*, before it: a tower that starts from random weights does not find shapes through captions alone in any
reasonable time; X-VLM starts from CLIP's tower. Shapes knows its scenes, so the tower is first taught, through a linear
head that is thrown away afterwards, which shape, colour, size and fill covers each patch, which background the image
has, and which pixels of the patch lie inside the outline of an object:

    loss = CE(background) + sum over attributes (CE on object patches + CE on empty patches) + BCE(pixels)

The pixels matter most at first: a tower with a single patch convolution learns outlines from them, and shapes from
outlines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from multiflow.base.artifacts import write_facts
from multiflow.base.progress import Report
from multiflow.base.runs import run_folder
from multiflow.base.strict import flags
from multiflow.data import collate_pairs, collate_regions, to_pixels
from multiflow.data.sampling import seed_at
from multiflow.families import FAMILIES
from multiflow.families.pairs import PairModel, recipe_of
from multiflow.tasks.task import Batch
from multiflow.training.loop import Trained, train
from multiflow.worlds.folder import trained_on
from multiflow.worlds.shapes import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    SHAPES,
    SIZES,
    Scene,
    describe,
    make_scenes,
    regions,
    render,
)
from multiflow.worlds.shapes.models import (
    MAX_TOKENS,
    Pretraining,
    shapes_model,
    shapes_tokenizer,
)
from multiflow.worlds.shapes.release import release
from multiflow.worlds.shapes.render import OUTLINES

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
        write_facts(out_dir / "figures.json", figures)
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


ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "fill": FILLS}
CLASSES = (*(1 + len(values) for values in ATTRIBUTES.values()), len(BACKGROUNDS))  # class 0 of an attribute: no object
PIXELS = 10.0  # weight of the outlines
COVERED = 0.06  # share of its pixels from which on a patch belongs to an object


def train_vision(model: PairModel, settings: Pretraining, run_dir: Path, **options: Any) -> Trained:

    def loss(classifier: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        return patch_loss(classifier(batch["pixel_values"]), batch["labels"], batch["pixels"])

    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        classifier = PatchClassifier(model).to(settings.device)
    plan = settings.stage(settings.vision_steps, settings.vision_lr)
    return train(classifier, lambda position: vision_batch(settings, position), loss, plan, run_dir, **options)


def vision_batch(settings: Pretraining, position: int) -> Batch:
    count, side = settings.vision_batch_size, settings.image_size
    scenes = make_scenes("train", count, seed=settings.seed, start=position * count)
    classes, pixels = patch_labels(scenes, side, settings.patch_size)
    labels = {"labels": torch.from_numpy(classes), "pixels": torch.from_numpy(pixels)}
    return {"pixel_values": torch.from_numpy(to_pixels([render(scene, side) for scene in scenes], side)), **labels}


class PatchClassifier(nn.Module):
    """The vision tower of a model under a linear head: pictures to ``(images, patches, outputs)``."""

    def __init__(self, model: PairModel):
        super().__init__()
        self.tower = recipe_of(model).tower(model)
        self.head = nn.Linear(model.config.vision["width"], sum(CLASSES) + model.config.patch_size**2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return side by side the logits of every question, in the order of `CLASSES`, and of every pixel."""
        states = self.tower(pixel_values)
        return self.head(getattr(states, "last_hidden_state", states)[:, 1:])


def patch_labels(
    scenes: Sequence[Scene], side: int, patch: int
) -> tuple[Int[np.ndarray, "scenes patches questions"], Bool[np.ndarray, "scenes patches pixels"]]:
    """Label the patches of every scene, row by row.

    A patch belongs to the object that covers most of its pixels.

    Args:
        scenes: what to label.
        side: side of the pictures in pixels.
        patch: side of a patch in pixels.

    Returns:
        One class per question, and which pixels lie inside an outline.
    """
    most = max(len(scene.objects) for scene in scenes)
    classes = np.zeros((len(scenes), 1 + most, len(CLASSES)), np.int64)
    owners = np.empty((len(scenes), side, side), np.int64)
    for i, scene in enumerate(scenes):
        owners[i] = owner_map(scene, side)
        classes[i, :, -1] = BACKGROUNDS.index(scene.background)
        for j, o in enumerate(scene.objects, 1):
            classes[i, j, :-1] = [1 + values.index(getattr(o, name)) for name, values in ATTRIBUTES.items()]
    count = side // patch
    pixels = owners.reshape(-1, count, patch, count, patch).swapaxes(2, 3).reshape(len(scenes), count**2, patch**2)
    share = np.stack([(pixels == j).mean(2) for j in range(1, 1 + most)], 2)
    owner = np.where(share.max(2) >= COVERED, 1 + share.argmax(2), 0)
    return classes[np.arange(len(scenes))[:, None], owner], pixels > 0


def owner_map(scene: Scene, side: int) -> Int[np.ndarray, "side side"]:
    """Return of every pixel the number of the object whose outline it lies in, from 1; 0: none."""
    middle = (np.arange(side, dtype=np.float32) + 0.5) / side
    owners = np.zeros((side, side), np.int64)
    for number, o in enumerate(scene.objects, 1):
        u, v = (middle - o.x) / o.radius, (middle - o.y) / o.radius
        owners[OUTLINES[o.shape](u[None, :], v[:, None]) < 0] = number
    return owners


def patch_loss(
    logits: Float[Tensor, "images patches outputs"],
    labels: Int[Tensor, "images patches questions"],
    pixels: Bool[Tensor, "images patches pixels"],
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the loss, and for each attribute and for all together the share of object patches that are right."""
    sizes = (*CLASSES, pixels.shape[-1])
    *attributes, background, inside = logits.float().flatten(0, 1).split(sizes, dim=1)
    *wanted, wanted_background = labels.flatten(0, 1).unbind(1)
    objects = wanted[0] > 0
    outlines = F.binary_cross_entropy_with_logits(inside, pixels.flatten(0, 1).float())
    loss = F.cross_entropy(background, wanted_background) + PIXELS * outlines
    right = []
    for part, want in zip(attributes, wanted, strict=True):
        costs = F.cross_entropy(part, want, reduction="none")
        loss = loss + (costs * objects).sum() / objects.sum().clamp(min=1) + (costs * ~objects).mean()
        right.append((part.argmax(1) == want)[objects])
    figures = {name: hits.float().mean() for name, hits in zip(ATTRIBUTES, right, strict=True)}
    return loss, {"patches": torch.stack(right).all(0).float().mean(), "outlines": outlines, **figures}
