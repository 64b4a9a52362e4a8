"""X-VLM's vision tower, what its models have in common, and the batches that they take, checked.

The vision tower is a CLIP ViT whose last layers can look at regions of the image. Per layer: ``x +
attention(norm1(x))``, then ``x + mlp(norm2(x))``. In a region batch the hidden states at layer ``layers -
local_attn_depth`` are copied once per text and stacked ``[copy per text ; full images]``; from there on a copy attends
to the patches of its region only, a full image to all of them.

What is missing in a batch or does not fit is found before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN

from multiflow.base.errors import MultiflowError
from multiflow.families.pairs import PairModel
from multiflow.families.xvlm.config import XVLMConfig
from multiflow.families.xvlm.losses import similarity
from multiflow.families.xvlm.text import TextEncoder, attend

EPS = 1e-5  # of every LayerNorm in this tower


class SelfAttention(nn.Module):
    """Self-attention with separate projections for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map ``(batch, tokens, width)`` to the same shape."""
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, mask))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, act: str):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACT2FN[act]
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class VisionLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(sizes["width"], eps=EPS)
        self.self_attn = SelfAttention(sizes["width"], sizes["heads"])
        self.layer_norm2 = nn.LayerNorm(sizes["width"], eps=EPS)
        self.mlp = MLP(sizes["width"], sizes["mlp"], sizes["act"])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map ``(batch, tokens, width)`` to the same shape."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class VisionLayers(nn.Module):
    """The stack of layers, under the name that the release gives it."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(sizes) for _ in range(sizes["layers"]))


class VisionEncoder(nn.Module):
    """Images to embeddings of [CLS] and patches.

    Args:
        sizes: the ``vision`` part of `XVLMConfig`.
        image_size: side of the images, in pixels.
        patch_size: side of a patch, in pixels.
    """

    def __init__(self, sizes: dict[str, Any], image_size: int, patch_size: int):
        super().__init__()
        width = sizes["width"]
        self.image_size = image_size
        self.split = sizes["layers"] - sizes["local_attn_depth"]
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embed = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.pos_embed = nn.Embedding(1 + (image_size // patch_size) ** 2, width)
        self.pre_layrnorm = nn.LayerNorm(width, eps=EPS)  # the release's spelling
        self.encoder = VisionLayers(sizes)
        self.post_layernorm = nn.LayerNorm(width, eps=EPS)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Put [CLS] before the patches and add positions: ``(images, 1 + patches, width)``."""
        side = self.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, side, side):
            raise MultiflowError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; this model takes (images, 3, {side}, {side})"
            )
        patches = self.patch_embed(pixel_values.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(patches), 1, -1)
        return self.pre_layrnorm(torch.cat([cls, patches], dim=1) + self.pos_embed.weight)

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 side side"],
        image_index: Int[Tensor, " texts"] | None = None,
        patch_mask: Int[Tensor, "texts tokens"] | None = None,
    ) -> Float[Tensor, "rows tokens width"]:
        """Encode the images.

        Returns:
            One row per image; with ``image_index`` one row per text (its copy, limited to ``patch_mask``) followed by
            one row per image.
        """
        x = self.embed(pixel_values)
        for layer in self.encoder.layers[: self.split]:
            x = layer(x)
        mask = None
        if image_index is not None and patch_mask is not None:
            if patch_mask.shape[1] != x.shape[1]:
                raise MultiflowError(
                    f"patch_mask has {patch_mask.shape[1]} columns; this model sees {x.shape[1]} tokens an image, "
                    "[CLS] and the patches"
                )
            everything = patch_mask.new_ones(len(x), x.shape[1])
            mask = torch.cat([patch_mask, everything]).bool()[:, None, None]
            x = torch.cat([x.index_select(0, image_index), x])
        for layer in self.encoder.layers[self.split :]:
            x = layer(x, mask)
        return self.post_layernorm(x)


@dataclass(frozen=True)
class Masked:
    """The texts with some tokens masked; unused slots have position 0 and label -100."""

    input_ids: Int[Tensor, "texts length"]
    positions: Int[Tensor, "texts slots"]
    labels: Int[Tensor, "texts slots"]


@dataclass(frozen=True)
class Regions:
    """Which image and which of its tokens ([CLS] first) each text sees, and its box: cx, cy, w, h in 0..1."""

    image_index: Int[Tensor, " texts"]
    patch_mask: Int[Tensor, "texts tokens"]
    boxes: Float[Tensor, "texts 4"] | None  # None where no loss is asked for
    is_image: Int[Tensor, " texts"] | None


@dataclass(frozen=True)
class Batch:
    """Pairs of image and text: text ``i`` belongs to image ``i``, or to the image that ``regions`` names."""

    pixel_values: Float[Tensor, "images 3 side side"]
    input_ids: Int[Tensor, "texts length"]
    attention_mask: Int[Tensor, "texts length"]
    masked: Masked | None
    regions: Regions | None


def read_batch(batch: Mapping[str, Any], losses: bool) -> Batch:
    """Check the keys of a batch and group them.

    Args:
        batch: the arguments of `XVLMForPretraining.forward`; what is not given is absent or None.
        losses: also ask for the keys that only the losses need.

    Raises:
        MultiflowError: a key is missing, or the shapes do not fit together.
    """
    pixel_values, input_ids, attention_mask = _take(batch, "pixel_values", "input_ids", "attention_mask")
    masked = regions = None
    if losses and _any(batch, "mlm_input_ids", "mlm_positions", "mlm_labels"):
        masked = Masked(*_take(batch, "mlm_input_ids", "mlm_positions", "mlm_labels"))
    if _any(batch, "image_index", "patch_mask"):
        needed = ("image_index", "patch_mask", "boxes") if losses else ("image_index", "patch_mask")
        index, mask, *boxes = _take(batch, *needed)
        regions = Regions(index, mask, boxes[0] if boxes else None, batch.get("is_image"))
    source, rows = ("image_index", regions.image_index) if regions else ("pixel_values", pixel_values)
    if len(rows) != len(input_ids):
        raise MultiflowError(
            f"{source} has {len(rows)} rows and input_ids has {len(input_ids)}; "
            "give one image for each text, or say with image_index which image each text belongs to"
        )
    same = {"attention_mask": attention_mask} | ({} if masked is None else {"mlm_input_ids": masked.input_ids})
    for name, tensor in same.items():
        if tensor.shape != input_ids.shape:
            shapes = f"{name} has shape {tuple(tensor.shape)} and input_ids {tuple(input_ids.shape)}"
            raise MultiflowError(f"{shapes}; pad both to the same length")
    return Batch(pixel_values, input_ids, attention_mask, masked, regions)


def _any(batch: Mapping[str, Any], *keys: str) -> bool:
    return any(batch.get(key) is not None for key in keys)


def _take(batch: Mapping[str, Any], *keys: str) -> tuple[Tensor, ...]:
    values = tuple(batch.get(key) for key in keys)
    for key, value in zip(keys, values, strict=True):
        if value is None:
            raise MultiflowError(f"the batch has no '{key}'; X-VLM needs {', '.join(keys)} together")
    return values  # type: ignore[return-value]


class XVLMTower(PreTrainedModel):
    """Abstract: an X-VLM with its vision tower.

    Module paths are those of the pretraining model in every class, so that a layer's name means the same everywhere.
    """

    base_model_prefix = ""
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _no_split_modules = ["VisionLayer", "TextLayer"]  # noqa: RUF012

    config: XVLMConfig
    vision_encoder: VisionEncoder

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisionEncoder):
            init.normal_(module.class_embedding, std=self.config.initializer_range)
        elif isinstance(module, XVLMPairs):
            init.constant_(module.temp, self.config.temp)

    def encode_image(self, pixel_values: Float[Tensor, "images 3 side side"]) -> Float[Tensor, "images tokens width"]:
        """Embed [CLS] and the patches of whole images."""
        return self.vision_encoder(pixel_values)


class XVLMPairs(XVLMTower, PairModel):
    """Abstract: an X-VLM that compares images with texts, by their features and by its matching head."""

    text_encoder: TextEncoder

    def _add_towers_and_heads(self, config: XVLMConfig, *, predicts: bool) -> None:
        """Add the towers, and what they are compared and matched with; ``predicts``: with the head for words."""
        vision_width, text_width = config.vision["width"], config.text["width"]
        self.vision_encoder = VisionEncoder(config.vision, config.image_size, config.patch_size)
        self.text_encoder = TextEncoder(config.text, head=predicts)
        self.vision_proj = nn.Linear(vision_width, config.embed_dim)
        self.text_proj = nn.Linear(text_width, config.embed_dim)
        self.temp = nn.Parameter(torch.empty(()))
        self.itm_head = head(text_width, 2)

    def encode_text(
        self, input_ids: Int[Tensor, "texts length"], attention_mask: Int[Tensor, "texts length"]
    ) -> Float[Tensor, "texts length width"]:
        """Embed texts with the layers below the fusion layers."""
        return self.text_encoder.bert.encode(input_ids, attention_mask)

    def fuse(
        self,
        text_embeds: Float[Tensor, "texts length width"],
        attention_mask: Int[Tensor, "texts length"],
        image_embeds: Float[Tensor, "images tokens image_width"],
        image_mask: Int[Tensor, "images tokens"] | None = None,
        image_index: Int[Tensor, " texts"] | None = None,
    ) -> Float[Tensor, "texts length width"]:
        """Run the fusion layers; text ``i`` attends to image ``image_index[i]``, or to image ``i`` without an index."""
        return self.text_encoder.bert.fuse(text_embeds, attention_mask, image_embeds, image_mask, image_index)

    def calibration_forward(self, region: Mapping[str, Any] | None = None, **batch: Any) -> None:
        """Run every prunable layer once on the pairs of a batch: no masked text, no negatives, no losses.

        In a region batch (with ``image_index``) copies and whole images go through the local layers and the copies are
        fused. A batch of its own under ``region`` runs after the general one. Takes what `forward` takes; keys that
        only the losses need may be missing.
        """
        pairs = read_batch(batch, losses=False)
        images, _ = self._images(pairs)
        texts = self.encode_text(pairs.input_ids, pairs.attention_mask)
        patch_mask = None if pairs.regions is None else pairs.regions.patch_mask
        self.fuse(texts, pairs.attention_mask, images[: len(texts)], patch_mask)
        if region is not None:
            self.calibration_forward(**region)

    def compared(self, region: Mapping[str, Any] | None = None, **batch: Any) -> dict[str, Tensor]:
        """Return what the model says of the pairs of a batch, without labels and losses: what a sparse one is to say.

        ``similarity`` (images by texts), ``match_logits`` of the pairs and of each text with the next image, and
        ``word_logits`` where words are hidden. A region batch is numbered ``region_...``.
        """
        pairs = read_batch(batch, losses=False)
        count, padding = len(pairs.input_ids), pairs.attention_mask
        images, image_mask = self._images(pairs)
        texts = self.encode_text(pairs.input_ids, padding)
        found = {"similarity": similarity(self.image_features(images[:count]), self.text_features(texts), self.temp)}
        own = torch.arange(count, device=texts.device)
        rows = [(texts, own), (texts, own.roll(1))]
        masked = hasattr(self.text_encoder, "cls") and batch.get("mlm_input_ids") is not None
        if masked:
            rows.append((self.encode_text(batch["mlm_input_ids"], padding), own))
        hidden, index = (torch.cat(column) for column in zip(*rows, strict=True))
        fused = self.fuse(hidden, padding.repeat(len(rows), 1), images, image_mask, index).split(count)
        found["match_logits"] = self.itm_head(torch.cat([x[:, 0] for x in fused[:2]]))
        if masked:
            logits = self.text_encoder.predict(fused[2], batch["mlm_positions"])
            found["word_logits"] = logits[batch["mlm_labels"] != -100]
        if region is not None:
            found |= {f"region_{name}": value for name, value in self.compared(**region).items()}
        return found

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Embed the images, of a region batch [copy per text ; whole images], and say which tokens may be seen."""
        regions = batch.regions
        if regions is None:
            return self.encode_image(batch.pixel_values), None
        everything = regions.patch_mask.new_ones(len(batch.pixel_values), regions.patch_mask.shape[1])
        stacked = self.vision_encoder(batch.pixel_values, regions.image_index, regions.patch_mask)
        return stacked, torch.cat([regions.patch_mask, everything])


def head(width: int, classes: int) -> nn.Sequential:
    """Build a head with one hidden layer, on the state of [CLS]."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, classes))
