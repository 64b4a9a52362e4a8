"""BLIP for pretraining (Li et al., arXiv 2201.12086), put together from transformers' own BLIP parts.

One text model, three uses: alone, as encoder grounded in an image, as causal decoder grounded in an image. The
contrastive loss compares with features of slow (momentum) copies of the towers, those of earlier batches from queues.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from multiflow.models.blip import losses, parts
from multiflow.models.blip.batch import read_pairs
from multiflow.models.blip.config import BlipPretrainingConfig
from multiflow.models.blip.momentum import MEMORY, as_buffers, enqueue, follow, momentum_pairs
from multiflow.models.matching import matching_loss

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


class BlipForPretraining(PreTrainedModel):
    """BLIP with contrastive, matching and language-model losses.

    A call of the model is a step of its memory: the momentum copies (``*_m``) move and the queues take in the batch,
    in evaluation mode too. All of that memory is in the model's buffers: to put the buffers back is to undo the call.
    The ``encode_*``, `ground`, `decode` and `calibration_forward` leave no trace.

    >>> config = BlipPretrainingConfig(vision={"layers": 1}, text={"layers": 1}, queue_size=64)
    >>> BlipForPretraining(config).text_queue.shape
    torch.Size([256, 64])
    """

    config_class = BlipPretrainingConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _no_split_modules = ["BlipEncoderLayer", "BlipTextLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_missing = [MEMORY]  # noqa: RUF012

    config: BlipPretrainingConfig
    image_queue: Tensor
    text_queue: Tensor
    queue_ptr: Tensor

    def __init__(self, config: BlipPretrainingConfig):
        super().__init__(config)
        vision_width, text_width = config.vision["width"], config.text["width"]
        self.vision_model = parts.vision_model(config)
        self.text_encoder = parts.text_encoder(config)
        self.text_decoder = parts.text_decoder(config, self.text_encoder)
        self.vision_proj = nn.Linear(vision_width, config.embed_dim)
        self.text_proj = nn.Linear(text_width, config.embed_dim)
        self.itm_head = nn.Linear(text_width, 2)
        self.temp = nn.Parameter(torch.empty(()))
        self.vision_model_m = as_buffers(parts.vision_model(config))
        self.text_encoder_m = as_buffers(parts.text_encoder(config))
        self.vision_proj_m = as_buffers(nn.Linear(vision_width, config.embed_dim))
        self.text_proj_m = as_buffers(nn.Linear(text_width, config.embed_dim))
        self.register_buffer("image_queue", torch.empty(config.embed_dim, config.queue_size))
        self.register_buffer("text_queue", torch.empty(config.embed_dim, config.queue_size))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        self._tied_weights_keys = parts.shared_names(self)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BlipForPretraining):
            init.constant_(module.temp, self.config.temp)
            init.zeros_(module.queue_ptr)
            for queue in (module.image_queue, module.text_queue):
                init.copy_(queue, fresh_queue(queue))

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw the weights that no file gave; momentum copies that no file gave then equal the online weights."""
        super().initialize_weights()
        for copy, online in momentum_pairs(self):
            init.copy_(copy, online)

    def encode_image(self, pixel_values: Float[Tensor, "images 3 side side"]) -> Float[Tensor, "images tokens width"]:
        """Embed [CLS] and the patches of images."""
        return self.vision_model(pixel_values=pixel_values).last_hidden_state

    def encode_text(
        self, input_ids: Int[Tensor, "texts length"], attention_mask: Int[Tensor, "texts length"]
    ) -> Float[Tensor, "texts length width"]:
        """Embed texts by themselves."""
        return self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def ground(
        self,
        input_ids: Int[Tensor, "texts length"],
        attention_mask: Int[Tensor, "texts length"],
        image_embeds: Float[Tensor, "texts tokens image_width"],
    ) -> Float[Tensor, "texts length width"]:
        """Embed texts, [ENC] as their first token, each grounded in its image."""
        return self.text_encoder(
            input_ids=_begin(input_ids, self.config.enc_token_id),
            attention_mask=attention_mask,
            encoder_hidden_states=image_embeds,
        ).last_hidden_state

    def decode(
        self,
        input_ids: Int[Tensor, "texts length"],
        attention_mask: Int[Tensor, "texts length"],
        image_embeds: Float[Tensor, "texts tokens image_width"],
    ) -> Float[Tensor, "texts length width"]:
        """Run the causal decoder over texts, [DEC] as their first token; ``text_decoder.cls`` gives the logits."""
        return self.text_decoder.bert(
            input_ids=_begin(input_ids, self.config.bos_token_id),
            attention_mask=attention_mask,
            encoder_hidden_states=image_embeds,
            is_decoder=True,
            use_cache=False,
        ).last_hidden_state

    def image_features(self, image_embeds: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images dim"]:
        """Project [CLS] to unit vectors that are compared with those of texts."""
        return F.normalize(self.vision_proj(image_embeds[:, 0]), dim=-1)

    def text_features(self, text_embeds: Float[Tensor, "texts length width"]) -> Float[Tensor, "texts dim"]:
        """Project [CLS] to unit vectors that are compared with those of images."""
        return F.normalize(self.text_proj(text_embeds[:, 0]), dim=-1)

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
        count = len(input_ids)
        images, texts = self.encode_image(pixel_values), self.encode_text(input_ids, attention_mask)
        image_feat, text_feat = self.image_features(images), self.text_features(texts)

        slow_image, slow_text = self._momentum_features(pixel_values, input_ids, attention_mask)
        all_images = torch.cat([slow_image.T, self.image_queue], dim=1)
        all_texts = torch.cat([slow_text.T, self.text_queue], dim=1)
        image_sim = losses.similarity(image_feat, all_texts, self.temp)
        text_sim = losses.similarity(text_feat, all_images, self.temp)
        with torch.no_grad():
            image_target = losses.soft_targets(losses.similarity(slow_image, all_texts, self.temp), alpha)
            text_target = losses.soft_targets(losses.similarity(slow_text, all_images, self.temp), alpha)
        loss_itc = (F.cross_entropy(image_sim, image_target) + F.cross_entropy(text_sim, text_target)) / 2
        self._enqueue(slow_image, slow_text)

        own = torch.arange(count, device=images.device)
        rows = [(own, own)]  # (text, the image it is grounded in)
        if count > 1:
            image, text = losses.hard_negatives(image_sim[:, :count], text_sim[:, :count], seed)
            rows += [(own, image), (text, own)]
        else:
            warnings.warn("a batch of one pair has no hard negatives: loss_itm counts the pair alone", stacklevel=3)
        text, image = (torch.cat(column) for column in zip(*rows, strict=True))
        grounded = self.ground(input_ids[text], attention_mask[text], images.index_select(0, image))
        itm_logits = self.itm_head(grounded[:, 0])

        logits = self.text_decoder.cls(self.decode(input_ids, attention_mask, images))
        return BlipPretrainingOutput(
            loss_itc=loss_itc,
            loss_itm=matching_loss(itm_logits, count),
            loss_lm=losses.language_loss(logits, input_ids, attention_mask),
            image_embeds=images,
            text_embeds=texts,
            cross_embeds=grounded[:count],
            image_feat=image_feat,
            text_feat=text_feat,
            itm_logits=itm_logits[:count],
            decoder_logits=logits,
        )

    @torch.no_grad()
    def _momentum_features(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Float[Tensor, "pairs dim"], Float[Tensor, "pairs dim"]]:
        """Move the momentum copies one step, then let them embed the pairs."""
        follow(self, self.config.momentum)
        image = self.vision_model_m(pixel_values=pixel_values).last_hidden_state[:, 0]
        text = self.text_encoder_m(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        return F.normalize(self.vision_proj_m(image), dim=-1), F.normalize(self.text_proj_m(text), dim=-1)

    @torch.no_grad()
    def _enqueue(self, image: Tensor, text: Tensor) -> None:
        enqueue(self.image_queue, self.queue_ptr, image)
        enqueue(self.text_queue, self.queue_ptr, text)
        self.queue_ptr.add_(len(image)).remainder_(self.config.queue_size)


def fresh_queue(queue: Float[Tensor, "dim size"]) -> Float[Tensor, "dim size"]:
    """Draw random unit vectors of the shape and on the device of a queue; always the same ones."""
    draw = torch.randn(queue.shape, generator=torch.Generator().manual_seed(0))
    return F.normalize(draw, dim=0).to(queue)


def _begin(input_ids: Tensor, token: int) -> Tensor:
    """Put a token in the place of each text's first one."""
    return torch.cat([torch.full_like(input_ids[:, :1], token), input_ids[:, 1:]], dim=1)
