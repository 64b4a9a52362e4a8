"""BLIP's models (Li et al., arXiv 2201.12086): for pretraining, retrieval, captioning and questions.

One text model, three uses: alone, as encoder grounded in an image, as causal decoder grounded in an image. The
contrastive loss compares with features of slow (momentum) copies of the towers, those of earlier batches from queues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from multiflow.base.errors import MultiflowError
from multiflow.families.answers import Answers, AnswersQuestions
from multiflow.families.blip import losses, parts
from multiflow.families.blip.config import (
    BlipCaptioningConfig,
    BlipPretrainingConfig,
    BlipRetrievalConfig,
    BlipVQAConfig,
)
from multiflow.families.blip.contrastive import NO_IMAGE, ContrastiveBlip
from multiflow.families.blip.parts import begin, read_pairs
from multiflow.families.pairs import matching_loss

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
    """BLIP that finds texts by image and images by text: the pretraining model without its decoder.

    Texts of one image match it all, wherever they are in batch and queue: the targets of ITC are spread evenly over
    them, and none of them is a negative in ITM. Differs from the published code: hard negatives come from the process's
    own batch, as a function of a seed, and every wrong pair has a small chance.

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


@dataclass
class BlipCaptioningOutput(ModelOutput):
    """``loss``; ``logits`` (texts, length, vocabulary) of each next token."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class BlipForCaptioning(PreTrainedModel):
    """BLIP that describes images: the image encoder, and the decoder that attends to the image.

    LM: cross-entropy of each next token, labels smoothed by 0.1. ``labels`` are shifted by one inside, as everywhere in
    transformers; what a caption begins with, such as the prompt, is left out of the loss with -100.

    >>> model = mf.task_model(blip, "captioning", eos_token_id=102)                             # doctest: +SKIP
    >>> model.generate(pixel_values, prompt_ids, num_beams=3, min_length=5, max_length=20)      # doctest: +SKIP
    """

    config_class = BlipCaptioningConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _no_split_modules = ["BlipEncoderLayer", "BlipTextLayer"]  # noqa: RUF012

    config: BlipCaptioningConfig

    def __init__(self, config: BlipCaptioningConfig):
        super().__init__(config)
        self.vision_model = parts.vision_model(config)
        self.text_decoder = parts.caption_decoder(config)
        self._tied_weights_keys = parts.shared_names(self)
        self.post_init()

    def forward(
        self,
        pixel_values: Float[Tensor, "pairs 3 side side"] | None = None,
        input_ids: Int[Tensor, "pairs length"] | None = None,
        attention_mask: Int[Tensor, "pairs length"] | None = None,
        labels: Int[Tensor, "pairs length"] | None = None,
    ) -> BlipCaptioningOutput:
        """Compute the logits of each next token, and the loss where labels are given.

        Args:
            pixel_values: normalised images, one for each caption.
            input_ids: captions, the prompt included; [DEC] is put in the place of the first token.
            attention_mask: which of their tokens are real (1).
            labels: the captions again, -100 where a token does not count.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        images, ids, mask = read_pairs(self.config, pixel_values, input_ids, attention_mask)
        if labels is not None and labels.shape != ids.shape:
            shapes = f"labels has shape {tuple(labels.shape)} and input_ids {tuple(ids.shape)}"
            raise MultiflowError(f"{shapes}; give one label for each token")
        states = parts.decode(self.text_decoder, self.config, ids, mask, self._encode_image(images))
        logits = self.text_decoder.cls(states)
        loss = None if labels is None else losses.language_loss(logits, labels, labels != -100)
        return BlipCaptioningOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(
        self, pixel_values: Float[Tensor, "images 3 side side"], input_ids: Int[Tensor, "images start"], **options: Any
    ) -> Any:
        """Caption images with transformers' ``generate``: each image goes through the vision tower once.

        Args:
            pixel_values: normalised images.
            input_ids: what each caption begins with, without padding; [DEC] is put in the place of the first token. It
                counts in the lengths.
            options: what ``generate`` takes, such as ``num_beams``, ``min_length``, ``max_length``.

        Returns:
            What ``generate`` returns: the token ids of the captions, their first ones included.
        """
        tokens = {"eos_token_id": self.config.eos_token_id, "pad_token_id": self.config.pad_token_id}
        return self.text_decoder.generate(  # type: ignore[misc]
            input_ids=begin(input_ids, self.config.bos_token_id),
            encoder_hidden_states=self._encode_image(pixel_values),
            **{**tokens, **options},
        )

    def _encode_image(self, pixel_values: Tensor) -> Float[Tensor, "images tokens width"]:
        return self.vision_model(pixel_values=pixel_values).last_hidden_state


class BlipForVQA(AnswersQuestions, PreTrainedModel):
    """Image and question to answer: the encoder reads the question grounded in the image, the decoder writes.

    [ENC] is put in the place of a question's first token, [DEC] in that of an answer, which ends with [SEP].

    LM    = sum over the tokens of an answer of -log p(token), labels smoothed by 0.1
    score = -LM

    >>> model = mf.task_model(blip, "vqa", image_size=384)                                            # doctest: +SKIP
    >>> best, _ = model.rank_answers(pixel_values, input_ids, mask, candidate_ids, candidate_mask)    # doctest: +SKIP
    """

    config_class = BlipVQAConfig
    title = "BLIP"
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _no_split_modules = ["BlipEncoderLayer", "DropPathLayer", "BlipTextLayer"]  # noqa: RUF012

    config: BlipVQAConfig

    def __init__(self, config: BlipVQAConfig):
        super().__init__(config)
        self.vision_model = parts.vision_model(config, config.drop_path)
        self.text_encoder = parts.text_encoder(config)
        self.text_decoder = parts.answer_decoder(config)
        self._tied_weights_keys = parts.shared_names(self)
        self.post_init()

    def encode_question(
        self,
        pixel_values: Float[Tensor, "questions 3 side side"],
        input_ids: Int[Tensor, "questions length"],
        attention_mask: Int[Tensor, "questions length"],
    ) -> Float[Tensor, "questions length width"]:
        """Embed questions, [ENC] as their first token, each grounded in its image."""
        images = self.vision_model(pixel_values=pixel_values).last_hidden_state
        return parts.ground(self.text_encoder, self.config, input_ids, attention_mask, images)

    def _read(
        self, pixel_values: Tensor | None, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return read_pairs(self.config, pixel_values, input_ids, attention_mask)

    def _answer_losses(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        own = (states, mask) if answers.owner is None else (states[answers.owner], mask[answers.owner])
        return self._candidate_losses(*own, answers)

    def _candidate_losses(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        decoded = self._decode(states, mask, answers)
        return losses.answer_losses(self.text_decoder.cls, decoded, answers.ids, answers.mask)

    def _first_logits(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        start = mask.new_full((len(states), 1), self.config.bos_token_id)
        return self.text_decoder.cls(self._decode(states, mask, Answers(start, torch.ones_like(start)))[:, 0])

    def _score(self, first: Tensor, losses: Tensor) -> Tensor:
        return -losses

    def _decode(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        """Run the decoder over answers; as many that follow each other belong to each row of the states."""
        hidden = (mask[:, None, None] == 0).to(states.dtype) * torch.finfo(states.dtype).min
        return parts.decode(self.text_decoder, self.config, answers.ids, answers.mask, states, hidden)


for _model in (BlipForPretraining, BlipForRetrieval, BlipForCaptioning, BlipForVQA):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
