"""X-VLM for image-text retrieval (arXiv 2111.08276): contrastive (ITC) and matching (ITM) loss."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.families.matching import matching_loss
from multiflow.families.xvlm import losses
from multiflow.families.xvlm.batch import read_batch
from multiflow.families.xvlm.config import XVLMRetrievalConfig
from multiflow.families.xvlm.pretraining import XVLMOutput
from multiflow.families.xvlm.text import TextEncoder
from multiflow.families.xvlm.towers import XVLMPairs, head
from multiflow.families.xvlm.vision import VisionEncoder


class XVLMForRetrieval(XVLMPairs):
    """The pretraining model without its heads for words and boxes."""

    config_class = XVLMRetrievalConfig

    config: XVLMRetrievalConfig

    def __init__(self, config: XVLMRetrievalConfig):
        super().__init__(config)
        vision_width, text_width = config.vision["width"], config.text["width"]
        self.vision_encoder = VisionEncoder(config.vision, config.image_size, config.patch_size)
        self.text_encoder = TextEncoder(config.text, head=False)
        self.vision_proj = nn.Linear(vision_width, config.embed_dim)
        self.text_proj = nn.Linear(text_width, config.embed_dim)
        self.temp = nn.Parameter(torch.empty(()))
        self.itm_head = head(text_width, 2)
        self.post_init()

    def forward(
        self,
        pixel_values: Float[Tensor, "pairs 3 side side"] | None = None,
        input_ids: Int[Tensor, "pairs length"] | None = None,
        attention_mask: Int[Tensor, "pairs length"] | None = None,
        image_ids: Int[Tensor, " pairs"] | None = None,
        seed: int = 0,
    ) -> XVLMOutput:
        """Compute the losses of a batch of pairs.

        Args:
            pixel_values: normalised images.
            input_ids: texts.
            attention_mask: which of their tokens are real (1).
            image_ids: which image each pair shows, numbered over the whole data set: pairs of one image are right
                answers to each other and no negatives. By default every pair has an image of its own.
            seed: of the hard negatives; an equal seed draws the same ones.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        batch = read_batch(given, losses=False)
        count, padding = len(batch.input_ids), batch.attention_mask
        if image_ids is not None and image_ids.shape != (count,):
            raise MultiflowError(
                f"image_ids has shape {tuple(image_ids.shape)}; expected one for each of {count} pairs"
            )
        own = torch.arange(count, device=batch.input_ids.device)
        numbers = own if image_ids is None else image_ids
        positives = numbers[:, None] == numbers

        images, texts = self.encode_image(batch.pixel_values), self.encode_text(batch.input_ids, padding)
        image_feat, text_feat = self.image_features(images), self.text_features(texts)
        sim = losses.similarity(image_feat, text_feat, self.temp)

        rows = [(own, own)]  # (text, the image that it looks at)
        has_negative = own[~positives.all(1)]
        if len(has_negative):
            image, text = losses.hard_negatives(sim, seed, positives)
            rows += [(has_negative, image[has_negative]), (text[has_negative], has_negative)]
        else:
            warnings.warn("a batch of one image has no hard negatives: loss_itm counts its pairs alone", stacklevel=2)
        text, image = (torch.cat(column) for column in zip(*rows, strict=True))
        fused = self.fuse(texts.index_select(0, text), padding[text], images, image_index=image)
        itm_logits = self.itm_head(fused[:, 0])
        loss_itc, loss_itm = losses.contrastive_loss(sim, positives), matching_loss(itm_logits, count)
        return XVLMOutput(
            loss=loss_itc + loss_itm,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            image_embeds=images,
            text_embeds=texts,
            cross_embeds=fused[:count],
            image_feat=image_feat,
            text_feat=text_feat,
            itm_logits=itm_logits[:count],
        )
