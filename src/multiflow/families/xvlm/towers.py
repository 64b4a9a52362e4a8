"""What the X-VLM models have in common: abstract classes; each final one is a file with its modules and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from multiflow.families.xvlm.batch import Batch, read_batch
from multiflow.families.xvlm.config import XVLMConfig
from multiflow.families.xvlm.text import TextEncoder
from multiflow.families.xvlm.vision import VisionEncoder


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


class XVLMPairs(XVLMTower):
    """Abstract: an X-VLM that compares images with texts, by their features and by its matching head."""

    text_encoder: TextEncoder
    vision_proj: nn.Linear
    text_proj: nn.Linear
    temp: nn.Parameter
    itm_head: nn.Sequential

    def encode_regions(
        self,
        pixel_values: Float[Tensor, "images 3 side side"],
        image_index: Int[Tensor, " texts"],
        patch_mask: Int[Tensor, "texts tokens"],
    ) -> tuple[Float[Tensor, "texts tokens width"], Float[Tensor, "images tokens width"]]:
        """Embed for each text the image it belongs to, limited to the text's patches, and the whole images."""
        stacked = self.vision_encoder(pixel_values, image_index, patch_mask)
        return stacked[: len(image_index)], stacked[len(image_index) :]

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

    def image_features(self, image_embeds: Float[Tensor, "images tokens image_width"]) -> Float[Tensor, "images dim"]:
        """Project [CLS] to unit vectors that are compared with those of texts."""
        return F.normalize(self.vision_proj(image_embeds[:, 0]), dim=-1)

    def text_features(self, text_embeds: Float[Tensor, "texts length width"]) -> Float[Tensor, "texts dim"]:
        """Project [CLS] to unit vectors that are compared with those of images."""
        return F.normalize(self.text_proj(text_embeds[:, 0]), dim=-1)

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
