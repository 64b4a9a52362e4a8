"""Pretraining of a small X-VLM or BLIP on Shapes, from random weights to a folder that ``from_pretrained`` loads.

Two stages, both through the one training loop. *vision*: the tower learns what covers each patch (see ``warmup.py``).
*joint*: the losses of the family on pairs of a picture and a caption. X-VLM: ITC + ITM + MLM, and every
``region_every`` th step the same on region captions, with the box losses. BLIP: ITC + ITM + LM, in ITC the opinion of
the momentum copies comes in slowly. The first steps show scenes of one object, then of two, then of all sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from tyro.conf import arg

from multiflow.base.claim import claim_run, flags
from multiflow.base.progress import Report
from multiflow.families.blip import BlipForPretraining
from multiflow.families.blip.momentum import follow
from multiflow.families.reading import VisionLanguageModel
from multiflow.training.loop import Batch, Precision, Trained, TrainSettings, seed_at, train
from multiflow.worlds.folder import trained_on
from multiflow.worlds.shapes.batches import joint_batch, vision_batch
from multiflow.worlds.shapes.models import MOMENTUM, QUEUE, shapes_model, shapes_tokenizer
from multiflow.worlds.shapes.release import SCENES, release
from multiflow.worlds.shapes.warmup import PatchClassifier, patch_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FamilySize: TypeAlias = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the family's)")]

FREE_TO_CHANGE = ("checkpoint_every", "test_scenes")  # these do not alter the weights of a run
OWN_SIZES: Mapping[str, Mapping[str, int]] = {
    "xvlm": {"text_layers": 2, "vision_mlp": 768, "text_mlp": 576},
    "blip": {"text_layers": 3, "vision_mlp": 576, "text_mlp": 384},
}
ALPHA_RAMP = 0.5  # share of the joint steps in which BLIP's soft targets come in


@dataclass(frozen=True)
class PretrainSettings:
    """Model, data and schedule of a pretraining run on Shapes.

    Args:
        family: of the model; sizes that are not given are those of the bundled model of this family.
        image_size: side of the pictures in pixels.
        patch_size: side of a patch in pixels.
        width: width of both towers.
        heads: attention heads of both towers.
        vision_layers: layers of the vision tower; in X-VLM the last half of them can look at regions.
        text_layers: X-VLM: layers that see the text alone (2); BLIP: layers of encoder and decoder (3).
        fusion_layers: X-VLM: layers that see text and image.
        vision_mlp: hidden width of the MLPs of the vision tower (X-VLM 768, BLIP 576).
        text_mlp: hidden width of the MLPs of text and fusion layers (X-VLM 576, BLIP 384).
        embed_dim: width of the contrastive features.
        vision_steps: steps of the warm-up of the vision tower.
        vision_batch_size: pictures a step of the warm-up; many small steps find shapes sooner than few large ones.
        vision_lr: highest learning rate of the warm-up.
        steps: steps of the joint training.
        batch_size: pairs a step of the joint training.
        lr: highest learning rate of the joint training.
        weight_decay: of matrices and embeddings.
        region_every: X-VLM: every so many joint steps the batch is one of region captions; 0: never.
        precision: ``auto`` is bfloat16 where the device is faster in it; weights stay float32.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        seed: of weights, scenes, captions, masks and negatives.
        checkpoint_every: steps between checkpoints.
        test_scenes: held-out scenes on which the stored model is tested at the end.
    """

    family: Literal["xvlm", "blip"] = "xvlm"
    image_size: int = 48
    patch_size: int = 8
    width: int = 192
    heads: int = 6
    vision_layers: int = 4
    text_layers: FamilySize = None
    fusion_layers: int = 2
    vision_mlp: FamilySize = None
    text_mlp: FamilySize = None
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

    def size(self, name: str) -> int:
        """Return a size; one that is None is that of the family's bundled model."""
        given = getattr(self, name)
        return OWN_SIZES[self.family][name] if given is None else given


def train_vision(model: VisionLanguageModel, settings: PretrainSettings, run_dir: Path, **options: Any) -> Trained:
    """Warm up the vision tower."""

    def loss(classifier: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        return patch_loss(classifier(batch["pixel_values"]), batch["labels"], batch["pixels"])

    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        classifier = PatchClassifier(model).to(settings.device)
    plan = _plan(settings, settings.vision_steps, settings.vision_lr)
    return train(classifier, lambda position: vision_batch(settings, position), loss, plan, run_dir, **options)


def train_joint(
    model: VisionLanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: PretrainSettings,
    run_dir: Path,
    **options: Any,
) -> Trained:
    """Train the whole model with the losses of its family; BLIP's momentum copies start from the warmed-up towers."""
    if isinstance(model, BlipForPretraining):
        follow(model, 0.0)

    def loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        extra = {}
        if settings.family == "blip":
            ramp = min(1.0, position / (ALPHA_RAMP * settings.steps))
            extra["alpha"] = ramp * cast("BlipForPretraining", model).config.alpha
        out = model(**batch, **extra, seed=seed_at(settings.seed, position))
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
    """Pretrain a model on Shapes and write the model, ready to load, to ``out_dir/model``.

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
    claim_run(out_dir, settings, resume=resume, free=FREE_TO_CHANGE)
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


def _facts(settings: PretrainSettings, vision: Trained, joint: Trained) -> dict[str, object]:
    """Return the rows of the model card that tell how the model was made."""
    s = settings
    pictures, pairs = s.vision_batch_size * vision.steps, s.batch_size * joint.steps
    layers, losses = FAMILY_FACTS[s.family](s)
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


def _xvlm_facts(s: PretrainSettings) -> tuple[str, str]:
    regions = f"; every {s.region_every}th step region captions with boxes" if s.region_every else ""
    return f"{s.size('text_layers')} text and {s.fusion_layers} fusion layers", f"ITC, ITM and MLM{regions}"


def _blip_facts(s: PretrainSettings) -> tuple[str, str]:
    layers = f"{s.size('text_layers')} layers of the text encoder that the decoder shares but for its self-attention"
    return layers, f"ITC (momentum {MOMENTUM:g}, queue of {QUEUE:,}), ITM and LM"


FAMILY_FACTS: Mapping[str, Callable[[PretrainSettings], tuple[str, str]]] = {"xvlm": _xvlm_facts, "blip": _blip_facts}
