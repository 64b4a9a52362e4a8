"""Pretraining of a small X-VLM on the Shapes world, from random weights to a folder that ``from_pretrained`` loads.

Two stages, both through the one training loop. *vision*: the tower learns what covers each patch (see ``warmup.py``).
*joint*: X-VLM's losses ITC + ITM + MLM on pairs of a picture and a caption, and every ``region_every`` th step the same
on region captions, with the box losses. The first steps show scenes of one object, then of two, then of all sizes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multiflow.data import build_word_tokenizer, collate_pairs, collate_regions, to_pixels
from multiflow.data.shapes import VOCABULARY, Scene, describe, make_scenes, regions, render
from multiflow.errors import MultiflowError
from multiflow.models.xvlm import XVLMConfig, XVLMForPretraining
from multiflow.tasks.progress import Report, clock
from multiflow.tasks.release import SCENES, release
from multiflow.tasks.train import Batch, Precision, Trained, TrainSettings, seed_at, train
from multiflow.tasks.warmup import PatchClassifier, patch_labels, patch_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FREE_TO_CHANGE = ("checkpoint_every", "test_scenes")  # these do not alter the weights of a run
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
        vision_steps: steps of the warm-up of the vision tower.
        vision_batch_size: pictures a step of the warm-up; many small steps find shapes sooner than few large ones.
        vision_lr: highest learning rate of the warm-up.
        steps: steps of the joint training.
        batch_size: pairs a step of the joint training.
        lr: highest learning rate of the joint training.
        weight_decay: of matrices and embeddings.
        region_every: every so many joint steps the batch is one of region captions; 0: never.
        precision: ``auto`` is bfloat16 where the device is faster in it; weights stay float32.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of weights, scenes, captions, masks and negatives.
        checkpoint_every: steps between checkpoints.
        test_scenes: held-out scenes on which the stored model is tested at the end.
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
    vision_steps: int = 3000
    vision_batch_size: int = 64
    vision_lr: float = 1.5e-3
    steps: int = 2000
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.02
    region_every: int = 4
    precision: Precision = "auto"
    device: str = "cpu"
    seed: int = 0
    checkpoint_every: int = 100
    test_scenes: int = SCENES


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
        initializer_range=0.05,  # the usual 0.02 suits a width of 768: attention starts uniform and stays so for long
        text=text
        | {"layers": settings.text_layers + settings.fusion_layers, "fusion_layer": settings.text_layers}
        | {"max_position_embeddings": MAX_TOKENS, "dropout": 0.0},
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        model = XVLMForPretraining(config)
    with torch.no_grad():
        model.vision_encoder.pos_embed.weight[1:] = plane_waves(
            settings.image_size // settings.patch_size, settings.width
        )
    return model


def plane_waves(side: int, width: int) -> Float[Tensor, "cells width"]:
    """Sines and cosines of column and row: what the learned positions of the patches start from.

    Wavelengths run from two patches to twice the side.
    """
    cells = torch.arange(side)
    row, column = torch.meshgrid(cells, cells, indexing="ij")
    frequencies = math.pi * torch.logspace(0, math.log10(1 / side), width // 4)
    phases = (torch.stack([column.flatten(), row.flatten()], 1)[..., None] * frequencies).flatten(1)
    return torch.cat([phases.sin(), phases.cos()], 1) / 2


def pictures(scenes: list[Scene], size: int) -> Tensor:
    """Render scenes as normalised pixels ``(scenes, 3, size, size)``."""
    return torch.from_numpy(to_pixels([render(scene, size) for scene in scenes], size))


def vision_batch(settings: PretrainSettings, position: int) -> Batch:
    """Return pictures and the labels of their patches; a pure function of its arguments."""
    count, side = settings.vision_batch_size, settings.image_size
    scenes = make_scenes("train", count, seed=settings.seed, start=position * count)
    classes, pixels = patch_labels(scenes, side, settings.patch_size)
    labels = {"labels": torch.from_numpy(classes), "pixels": torch.from_numpy(pixels)}
    return {"pixel_values": pictures(scenes, side), **labels}


def joint_batch(settings: PretrainSettings, tokenizer: PreTrainedTokenizerBase, position: int) -> Batch:
    """Return a batch of pairs, or every ``region_every`` th time of regions; a pure function of its arguments.

    A region batch has half as many pictures, with up to two regions each.
    """
    done = position / settings.steps
    most = next((objects for until, objects in CURRICULUM if done < until), CURRICULUM[-1][1])
    start = settings.vision_steps * settings.vision_batch_size + position * settings.batch_size
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
        return patch_loss(classifier(batch["pixel_values"]), batch["labels"], batch["pixels"])

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


def pretrain(
    settings: PretrainSettings, out_dir: Path, *, resume: bool = False, progress: Report | None = None
) -> dict[str, float]:
    """Pretrain X-VLM on Shapes and write the model, ready to load, to ``out_dir/model``.

    Args:
        settings: see `PretrainSettings`.
        out_dir: holds ``settings.json``, a folder with checkpoints and metrics for each stage, and the model.
        resume: go on where an interrupted run of the same settings stopped.
        progress: called with a `Progress` after every step.

    Returns:
        Figures of the stored model, see `evaluate_shapes`.

    Raises:
        MultiflowError: the folder holds another run, or training diverged.

    >>> figures = pretrain(PretrainSettings(steps=100), Path("runs/try"))  # doctest: +SKIP
    """
    out_dir = Path(out_dir)
    _claim(out_dir, settings, resume)
    tokenizer = shapes_tokenizer()
    model = shapes_model(settings, len(tokenizer))
    nn.Module.to(model, settings.device)
    options: dict[str, Any] = {"resume": resume, "progress": progress}
    vision = train_vision(model, settings, out_dir / "vision", **options)
    joint = train_joint(model, tokenizer, settings, out_dir / "joint", **options)

    facts = _facts(settings, vision, joint)
    figures = release(model, tokenizer, out_dir / "model", facts, scenes=settings.test_scenes, seed=settings.seed)
    (out_dir / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def _claim(out_dir: Path, settings: PretrainSettings, resume: bool) -> None:
    """Write the settings into a new run's folder; check them against those of a run that is resumed."""
    path = out_dir / "settings.json"
    given = asdict(settings)
    if not path.exists():
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(given, indent=1) + "\n")
        except OSError as error:
            raise MultiflowError(f"cannot write to {out_dir}: {error.strerror}; choose another folder") from error
        return
    if not resume:
        raise MultiflowError(f"{out_dir} already holds a pretraining run; resume it or choose another folder")
    stored = json.loads(path.read_text())
    for name, value in given.items():
        if name not in FREE_TO_CHANGE and stored.get(name) != value:
            raise MultiflowError(
                f"{out_dir} was started with {name}={stored.get(name)}, not {value}; "
                f"resume it with its own settings or choose another folder"
            )


def _facts(settings: PretrainSettings, vision: Trained, joint: Trained) -> dict[str, object]:
    """Return the rows of the model card that tell how the model was made."""
    s, plain = settings, PretrainSettings()
    changed = {name: value for name, value in asdict(s).items() if value != getattr(plain, name)}
    flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
    pictures, pairs = s.vision_batch_size * vision.steps, s.batch_size * joint.steps
    machine = f"{torch.get_num_threads()} CPU threads" if s.device == "cpu" else torch.cuda.get_device_name(s.device)
    return {
        "architecture": f"X-VLM, {s.image_size} px in patches of {s.patch_size}, width {s.width}, "
        f"{s.vision_layers} vision, {s.text_layers} text and {s.fusion_layers} fusion layers",
        "data": 'Shapes, style "plain", split "train", drawn on the fly; scenes of the test split are never shown',
        "vision warm-up": f"{vision.steps:,} steps of {s.vision_batch_size}, {pictures:,} pictures with labels",
        "training": f"{joint.steps:,} steps of {s.batch_size}, {pairs:,} pairs in all: ITC, ITM and MLM; "
        f"every {s.region_every}th step region captions with boxes",
        "optimizer": f"AdamW, learning rates {s.vision_lr:g} and {s.lr:g}, weight decay {s.weight_decay:g}, cosine",
        "seed": s.seed,
        "time": f"{clock(vision.seconds)} and {clock(joint.seconds)} on {machine}, torch {torch.__version__}",
        "command": f"`multiflow pretrain OUT_DIR{flags}`",
    }
