"""BLIP for retrieval (Li et al., arXiv 2201.12086): ITC with momentum copies and queues, ITM with hard negatives.

As in pretraining, without the decoder; and texts of one image match it all, wherever they are in batch and queue:
the targets of ITC are spread evenly over them, and none of them is a negative in ITM.

Differs from the published code: hard negatives come from the process's own batch, as a function of a seed, and every
wrong pair has a small chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from multiflow.base.errors import MultiflowError
from multiflow.families.blip import losses, parts
from multiflow.families.blip.batch import read_pairs
from multiflow.families.blip.task_configs import BlipRetrievalConfig
from multiflow.families.blip.towers import NO_IMAGE, ContrastiveBlip
from multiflow.families.matching import matching_loss


@dataclass
class BlipRetrievalOutput(ModelOutput):
    """What `BlipForRetrieval` returns.

    ``loss`` is the sum of ``loss_itc`` and ``loss_itm``; ``image_feat`` and ``text_feat`` are unit vectors
    (pairs, embed_dim); ``itm_logits`` (pairs, 2) are those of the given pairs, class 1 = match.
    """

    loss: Tensor | None = None
    loss_itc: Tensor | None = None
    loss_itm: Tensor | None = None
    image_feat: Tensor | None = None
    text_feat: Tensor | None = None
    itm_logits: Tensor | None = None


class BlipForRetrieval(ContrastiveBlip):
    """BLIP that finds texts by image and images by text.

    A call of the model is a step of its memory: the momentum copies (``*_m``) move and the queues take in the batch,
    in evaluation mode too; see `BlipForPretraining`. The ``encode_*``, `ground` and ``*_features`` leave no trace.
    """

    config_class = BlipRetrievalConfig

    config: BlipRetrievalConfig
    image_ids_queue: Tensor

    def __init__(self, config: BlipRetrievalConfig):
        super().__init__(config)
        self.vision_model = parts.vision_model(config)
        self.text_encoder = parts.text_encoder(config)
        self._add_heads_and_memory(config)
        self.register_buffer("image_ids_queue", torch.full((1, config.queue_size), NO_IMAGE))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlipForRetrieval):
            init.constant_(module.image_ids_queue, NO_IMAGE)

    def forward(
        self,
        pixel_values: Float[Tensor, "pairs 3 side side"] | None = None,
        input_ids: Int[Tensor, "pairs length"] | None = None,
        attention_mask: Int[Tensor, "pairs length"] | None = None,
        image_ids: Int[Tensor, " pairs"] | None = None,
        alpha: float | None = None,
        seed: int = 0,
    ) -> BlipRetrievalOutput:
        """Compute the losses of a batch of pairs, and take it into the momentum copies and the queues.

        Args:
            pixel_values: normalised images, one for each text.
            input_ids: texts, [CLS] first.
            attention_mask: which of their tokens are real (1).
            image_ids: which image each pair shows, numbered over the whole data set: pairs of one image are right
                answers to each other and no negatives. Without it every pair has an image of its own.
            alpha: share of the momentum model's opinion in the contrastive targets; that of the config where not
                given. Training ramps it up from 0.
            seed: of the hard negatives; an equal seed draws the same ones.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        images, ids, mask = read_pairs(self.config, pixel_values, input_ids, attention_mask)
        if image_ids is not None and image_ids.shape != (len(ids),):
            raise MultiflowError(
                f"image_ids has shape {tuple(image_ids.shape)}; expected one for each of {len(ids)} pairs"
            )
        image_embeds, text_embeds = self.encode_image(images), self.encode_text(ids, mask)
        image_feat, text_feat = self.image_features(image_embeds), self.text_features(text_embeds)
        alpha = self.config.alpha if alpha is None else alpha
        loss_itc, *_ = self.contrast(images, ids, mask, image_feat, text_feat, alpha, image_ids)
        sim = losses.similarity(image_feat.detach(), text_feat.detach().T, self.temp.detach())
        positives = None if image_ids is None else image_ids[:, None] == image_ids
        _, itm_logits = self.match(ids, mask, image_embeds, sim, sim.T, seed, positives)
        loss_itm = matching_loss(itm_logits, len(ids))
        return BlipRetrievalOutput(
            loss=loss_itc + loss_itm,
            loss_itc=loss_itc,
            loss_itm=loss_itm,
            image_feat=image_feat,
            text_feat=text_feat,
            itm_logits=itm_logits[: len(ids)],
        )
