"""X-VLM for pretraining (Zeng et al., arXiv 2111.08276): the two towers, their heads and the losses.

A forward is one pass through each part: the vision tower sees every image once, the text layers see texts and masked
texts stacked, and the fusion layers see all the pairs that the losses need stacked, with the keys and values of an
image computed once for all the texts that look at it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.utils import ModelOutput

from multiflow.families.matching import matching_loss
from multiflow.families.xvlm import losses
from multiflow.families.xvlm.batch import Batch, read_batch
from multiflow.families.xvlm.config import XVLMConfig
from multiflow.families.xvlm.text import TextEncoder
from multiflow.families.xvlm.towers import XVLMPairs, head
from multiflow.families.xvlm.vision import VisionEncoder

LOSSES = ("loss_itc", "loss_itm", "loss_mlm", "loss_bbox", "loss_giou")


@dataclass
class XVLMOutput(ModelOutput):
    """What `XVLMForPretraining` returns; parts whose inputs were not given are None.

    ``loss`` is the sum of the ``loss_*``. ``image_embeds`` (of a region batch: each text's copy of its image),
    ``text_embeds`` and ``cross_embeds`` have shape (pairs, tokens, width); ``image_feat`` and ``text_feat`` are unit
    vectors (pairs, embed_dim); ``itm_logits`` (pairs, 2) are those of the given pairs, class 1 = match; ``bbox``
    (pairs, 4) is where in the whole image the text is found: cx, cy, w, h in 0..1.
    """

    loss: Tensor | None = None
    loss_itc: Tensor | None = None
    loss_itm: Tensor | None = None
    loss_mlm: Tensor | None = None
    loss_bbox: Tensor | None = None
    loss_giou: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    cross_embeds: Tensor | None = None
    image_feat: Tensor | None = None
    text_feat: Tensor | None = None
    itm_logits: Tensor | None = None
    bbox: Tensor | None = None


class XVLMForPretraining(XVLMPairs):
    """X-VLM with contrastive, matching, masked-language and box losses.

    >>> XVLMForPretraining(XVLMConfig(vision={"layers": 1, "local_attn_depth": 0})).config.vision["layers"]
    1
    """

    config_class = XVLMConfig
    _tied_weights_keys = {  # noqa: RUF012 (the form that transformers reads)
        "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight"
    }

    def __init__(self, config: XVLMConfig):
        super().__init__(config)
        vision_width, text_width = config.vision["width"], config.text["width"]
        self.vision_encoder = VisionEncoder(config.vision, config.image_size, config.patch_size)
        self.text_encoder = TextEncoder(config.text)
        self.vision_proj = nn.Linear(vision_width, config.embed_dim)
        self.text_proj = nn.Linear(text_width, config.embed_dim)
        self.temp = nn.Parameter(torch.empty(()))
        self.itm_head = head(text_width, 2)
        self.bbox_head = head(text_width, 4)
        self.post_init()

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 side side"] | None = None,
        input_ids: Int[Tensor, "texts length"] | None = None,
        attention_mask: Int[Tensor, "texts length"] | None = None,
        mlm_input_ids: Int[Tensor, "texts length"] | None = None,
        mlm_positions: Int[Tensor, "texts slots"] | None = None,
        mlm_labels: Int[Tensor, "texts slots"] | None = None,
        image_index: Int[Tensor, " texts"] | None = None,
        patch_mask: Int[Tensor, "texts tokens"] | None = None,
        boxes: Float[Tensor, "texts 4"] | None = None,
        is_image: Int[Tensor, " texts"] | None = None,
        region: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> XVLMOutput:
        """Compute the losses of a batch of pairs, or with ``image_index`` of texts that describe regions.

        Args:
            pixel_values: normalised images.
            input_ids: texts.
            attention_mask: which of their tokens are real (1).
            mlm_input_ids: the texts with masked tokens; without the three ``mlm_`` keys there is no MLM loss.
            mlm_positions: where the masked tokens are; 0 in unused slots.
            mlm_labels: what they were; -100 in unused slots.
            image_index: the image that each text belongs to.
            patch_mask: which tokens of its image ([CLS] first) each text sees.
            boxes: cx, cy, w, h in 0..1 of each text's region.
            is_image: 1 where the text describes the whole image and its box does not count.
            region: a region batch of its own; its losses and the general ones then count half each.
            seed: of the hard negatives; an equal seed draws the same ones.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        batch = read_batch(
            {
                "pixel_values": pixel_values,
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "mlm_input_ids": mlm_input_ids,
                "mlm_positions": mlm_positions,
                "mlm_labels": mlm_labels,
                "image_index": image_index,
                "patch_mask": patch_mask,
                "boxes": boxes,
                "is_image": is_image,
            },
            losses=True,
        )
        out = self._losses(batch, seed)
        if region is not None:
            _average_losses(out, self.forward(**{"seed": seed, **region}))
        out.loss = torch.stack([out[name] for name in LOSSES if out.get(name) is not None]).sum()
        return out

    def _losses(self, batch: Batch, seed: int) -> XVLMOutput:
        count, padding, masked, regions = len(batch.input_ids), batch.attention_mask, batch.masked, batch.regions
        images, image_mask = self._images(batch)
        token_ids = [batch.input_ids] if masked is None else [batch.input_ids, masked.input_ids]
        embeds = self.encode_text(torch.cat(token_ids), padding.repeat(len(token_ids), 1)).split(count)
        texts = embeds[0]
        image_feat, text_feat = self.image_features(images[:count]), self.text_features(texts)
        sim = losses.similarity(image_feat, text_feat, self.temp)

        own = torch.arange(count, device=images.device)
        rows = [(texts, padding, own)]  # (texts, their padding, the image that each one looks at)
        if count > 1:
            image, text = losses.hard_negatives(sim, seed)
            rows += [(texts, padding, image), (texts.index_select(0, text), padding[text], own)]
        else:
            warnings.warn("a batch of one pair has no hard negatives: loss_itm counts the pair alone", stacklevel=3)
        matching = len(rows)
        rows += [(hidden, padding, own) for hidden in embeds[1:]]
        if regions is not None:
            rows.append((texts, padding, count + regions.image_index))
        hidden, padding, index = (torch.cat(column) for column in zip(*rows, strict=True))
        fused = self.fuse(hidden, padding, images, image_mask, index).split(count)

        itm_logits = self.itm_head(torch.cat([x[:, 0] for x in fused[:matching]]))
        bbox = self.bbox_head(fused[0 if regions is None else -1][:, 0]).sigmoid()
        out = XVLMOutput(
            loss_itc=losses.contrastive_loss(sim),
            loss_itm=matching_loss(itm_logits, count),
            image_embeds=images[:count],
            text_embeds=texts,
            cross_embeds=fused[0],
            image_feat=image_feat,
            text_feat=text_feat,
            itm_logits=itm_logits[:count],
            bbox=bbox,
        )
        if masked is not None:
            logits = self.text_encoder.predict(fused[matching], masked.positions)
            out.loss_mlm = losses.masked_token_loss(logits, masked.labels)
        if regions is not None and regions.boxes is not None:
            out.loss_bbox, out.loss_giou = losses.box_losses(bbox, regions.boxes, regions.is_image)
        return out


def _average_losses(out: XVLMOutput, region: XVLMOutput) -> None:
    """Let the losses of both count half each (one that a batch does not have is 0 there)."""
    for name in LOSSES:
        both = [x[name] for x in (out, region) if x.get(name) is not None]
        if both:
            out[name] = torch.stack(both).sum() / 2
