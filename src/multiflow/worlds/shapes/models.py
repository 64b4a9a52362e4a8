"""The small models that are pretrained on Shapes, with random weights: settings, sizes, tokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from tyro.conf import arg

from multiflow.data import build_word_tokenizer
from multiflow.families.pairs import PairModel, recipe_of
from multiflow.training.settings import Precision, TrainSettings
from multiflow.worlds.shapes import VOCABULARY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FamilySize: TypeAlias = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the family's)")]

MAX_TOKENS = 40
INITIALIZER_RANGE = 0.05  # the usual 0.02 suits a width of 768: attention starts uniform and stays so for long
TEST_SCENES = 500
FAMILY = "xvlm"


@dataclass(frozen=True)
class Pretraining:
    """Model, data and schedule of a pretraining run on Shapes."""

    # of the model; sizes that are not given are those of the bundled model of this family
    family: Annotated[str, arg(metavar="F")] = FAMILY
    image_size: int = 48  # side of the pictures in pixels
    patch_size: int = 8  # side of a patch in pixels
    width: int = 192  # width of both towers
    heads: int = 6  # attention heads of both towers
    vision_layers: int = 4  # layers of the vision tower; in X-VLM the last half of them can look at regions
    # X-VLM: layers that see the text alone (2); BLIP: layers of encoder and decoder (3)
    text_layers: FamilySize = None
    fusion_layers: int = 2  # X-VLM: layers that see text and image
    vision_mlp: FamilySize = None  # hidden width of the MLPs of the vision tower (X-VLM 768, BLIP 576)
    text_mlp: FamilySize = None  # hidden width of the MLPs of text and fusion layers (X-VLM 576, BLIP 384)
    embed_dim: int = 128  # width of the contrastive features
    vision_steps: int = 3000  # steps of the warm-up of the vision tower
    # pictures a step of the warm-up; many small steps find shapes sooner than few large ones
    vision_batch_size: int = 64
    vision_lr: float = 1.5e-3  # highest learning rate of the warm-up
    steps: int = 2000  # steps of the joint training
    batch_size: int = 128  # pairs a step of the joint training
    lr: float = 1e-3  # highest learning rate of the joint training
    weight_decay: float = 0.02  # of matrices and embeddings
    region_every: int = 4  # X-VLM: every so many joint steps the batch is one of region captions; 0: never
    precision: Precision = "auto"  # ``auto`` is bfloat16 where the device is faster in it; weights stay float32
    device: str = "cpu"  # ``cpu``, ``cuda`` or ``cuda:N``
    seed: int = 0  # of weights, scenes, captions, masks and negatives
    checkpoint_every: int = 100  # steps between checkpoints
    test_scenes: int = TEST_SCENES  # held-out scenes on which the stored model is tested at the end

    def size(self, name: str) -> int:
        """Return a size; one that is None is that of the family's bundled model."""
        given = getattr(self, name)
        return recipe_of(self.family).sizes[name] if given is None else given

    def stage(self, steps: int, lr: float) -> TrainSettings:
        return TrainSettings(
            steps,
            lr,
            weight_decay=self.weight_decay,
            warmup=0.05,
            precision=self.precision,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
        )


def shapes_tokenizer(family: str = FAMILY) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the Shapes language: one token a word; those that the family adds are the last ones."""
    tokenizer = build_word_tokenizer([*VOCABULARY, ",", "?"])
    recipe_of(family).add_tokens(tokenizer)
    return tokenizer


def shapes_model(settings: Pretraining, vocab_size: int) -> PairModel:
    """Build the model with random weights that depend on the seed alone.

    Args:
        settings: sizes; one that is None is the family's own.
        vocab_size: tokens of its tokenizer.
    """
    recipe = recipe_of(settings.family)
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)
        model = recipe.build(_sizes(settings, vocab_size), settings)
    with torch.no_grad():
        recipe.positions(model).copy_(plane_waves(settings))
    return model


def _sizes(settings: Pretraining, vocab_size: int) -> dict[str, Any]:
    """Sizes that all families write alike."""
    tower = {"width": settings.width, "heads": settings.heads, "act": "gelu"}
    return {
        "image_size": settings.image_size,
        "patch_size": settings.patch_size,
        "embed_dim": settings.embed_dim,
        "initializer_range": INITIALIZER_RANGE,
        "vision": tower | {"mlp": settings.size("vision_mlp"), "layers": settings.vision_layers},
        "text": tower
        | {"mlp": settings.size("text_mlp"), "layers": settings.size("text_layers"), "vocab_size": vocab_size}
        | {"max_position_embeddings": MAX_TOKENS, "dropout": 0.0},
    }


def plane_waves(settings: Pretraining) -> Float[Tensor, "patches width"]:
    """Sines and cosines of column and row: what the learned positions of the patches start from.

    Wavelengths run from two patches to twice the side.
    """
    side = settings.image_size // settings.patch_size
    cells = torch.arange(side)
    row, column = torch.meshgrid(cells, cells, indexing="ij")
    frequencies = math.pi * torch.logspace(0, math.log10(1 / side), settings.width // 4)
    phases = (torch.stack([column.flatten(), row.flatten()], 1)[..., None] * frequencies).flatten(1)
    return torch.cat([phases.sin(), phases.cos()], 1) / 2
