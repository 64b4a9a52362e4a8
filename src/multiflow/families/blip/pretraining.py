"""BLIP for pretraining (Li et al., arXiv 2201.12086), put together from transformers' own BLIP parts.

One text model, three uses: alone, as encoder grounded in an image, as causal decoder grounded in an image. The
contrastive loss compares with features of slow (momentum) copies of the towers, those of earlier batches from queues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.utils import ModelOutput

from multiflow.families.blip import losses, parts
from multiflow.families.blip.batch import read_pairs
from multiflow.families.blip.config import BlipPretrainingConfig
from multiflow.families.blip.towers import ContrastiveBlip
from multiflow.families.matching import matching_loss

LOSSES = ("loss_itc", "loss_itm", "loss_lm")


@dataclass
class BlipPretrainingOutput(ModelOutput):
    """What `BlipForPretraining` returns.

    ``loss`` is the sum of the ``loss_*``. ``image_embeds``, ``text_embeds`` (text alone) and ``cross_embeds`` (text
    grounded in its image) have shape (pairs, tokens, width); ``image_feat`` and ``text_feat`` are unit vectors
    (pairs, embed_dim); ``itm_logits`` (pairs, 2) are those of the given pairs, class 1 = match; ``decoder_logits``
    (pairs, length, vocabulary) predict the token after each one.
    """

    loss: Tensor | None = None
    loss_itc: Tensor | None = None
    loss_itm: Tensor | None = None
    loss_lm: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    cross_embeds: Tensor | None = None
    image_feat: Tensor | None = None
    text_feat: Tensor | None = None
    itm_logits: Tensor | None = None
    decoder_logits: Tensor | None = None


class BlipForPretraining(ContrastiveBlip):
    """BLIP with contrastive, matching and language-model losses.

    A call of the model is a step of its memory: the momentum copies (``*_m``) move and the queues take in the batch,
    in evaluation mode too. All of that memory is in the model's buffers: to put the buffers back is to undo the call.
    The ``encode_*``, `ground`, `decode` and `calibration_forward` leave no trace. In a group of processes the queues
    take in the batches of all, so that all must call the model together; one without a batch calls `idle`.

    >>> config = BlipPretrainingConfig(vision={"layers": 1}, text={"layers": 1}, queue_size=64)
    >>> BlipForPretraining(config).text_queue.shape
    torch.Size([256, 64])
    """

    config_class = BlipPretrainingConfig

    def __init__(self, config: BlipPretrainingConfig):
        super().__init__(config)
        self.vision_model = parts.vision_model(config)
        self.text_encoder = parts.text_encoder(config)
        self.text_decoder = parts.text_decoder(config, self.text_encoder)
        self._add_heads_and_memory(config)
        self._tied_weights_keys = parts.shared_names(self)
        self.post_init()

    def decode(
        self,
        input_ids: Int[Tensor, "texts length"],
        attention_mask: Int[Tensor, "texts length"],
        image_embeds: Float[Tensor, "texts tokens image_width"],
    ) -> Float[Tensor, "texts length width"]:
        """Run the causal decoder over texts, [DEC] as their first token; ``text_decoder.cls`` gives the logits."""
        return parts.decode(self.text_decoder, self.config, input_ids, attention_mask, image_embeds)

    def calibration_forward(
        self,
        pixel_values: Float[Tensor, "pairs 3 side side"] | None = None,
        input_ids: Int[Tensor, "pairs length"] | None = None,
        attention_mask: Int[Tensor, "pairs length"] | None = None,
        region: Mapping[str, Any] | None = None,
    ) -> None:
        """Run image encoder, grounded text encoder and grounded decoder once on the pairs of a batch: no losses.

        A batch of its own under ``region`` runs after the general one.
        """
        images, ids, mask = read_pairs(self.config, pixel_values, input_ids, attention_mask)
        image_embeds = self.encode_image(images)
        self.ground(ids, mask, image_embeds)
        self.decode(ids, mask, image_embeds)
        if region is not None:
            self.calibration_forward(**region)

    def forward(
        self,
        pixel_values: Float[Tensor, "pairs 3 side side"] | None = None,
        input_ids: Int[Tensor, "pairs length"] | None = None,
        attention_mask: Int[Tensor, "pairs length"] | None = None,
        region: Mapping[str, Any] | None = None,
        alpha: float | None = None,
        seed: int = 0,
    ) -> BlipPretrainingOutput:
        """Compute the losses of a batch of pairs, and take it into the momentum copies and the queues.

        Args:
            pixel_values: normalised images.
            input_ids: texts, [CLS] first.
            attention_mask: which of their tokens are real (1).
            region: another batch of pairs; its losses and the general ones then count half each.
            alpha: share of the momentum model's opinion in the contrastive targets; that of the config where not
                given. Training ramps it up from 0, calibration uses 0.
            seed: of the hard negatives; an equal seed draws the same ones.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        images, ids, mask = read_pairs(self.config, pixel_values, input_ids, attention_mask)
        out = self._losses(images, ids, mask, self.config.alpha if alpha is None else alpha, seed)
        if region is not None:
            other = self.forward(**{"alpha": alpha, "seed": seed, **region})
            for name in LOSSES:
                out[name] = (out[name] + other[name]) / 2
        out.loss = torch.stack([out[name] for name in LOSSES]).sum()
        return out

    def _losses(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, alpha: float, seed: int
    ) -> BlipPretrainingOutput:
        images, texts = self.encode_image(pixel_values), self.encode_text(input_ids, attention_mask)
        image_feat, text_feat = self.image_features(images), self.text_features(texts)
        loss_itc, image_sim, text_sim = self.contrast(
            pixel_values, input_ids, attention_mask, image_feat, text_feat, alpha
        )
        grounded, itm_logits = self.match(input_ids, attention_mask, images, image_sim, text_sim, seed)
        logits = self.text_decoder.cls(self.decode(input_ids, attention_mask, images))
        count = len(input_ids)
        return BlipPretrainingOutput(
            loss_itc=loss_itc,
            loss_itm=matching_loss(itm_logits, count),
            loss_lm=losses.language_loss(logits, input_ids, attention_mask),
            image_embeds=images,
            text_embeds=texts,
            cross_embeds=grounded,
            image_feat=image_feat,
            text_feat=text_feat,
            itm_logits=itm_logits[:count],
            decoder_logits=logits,
        )
