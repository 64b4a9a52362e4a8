"""X-VLM's models (Zeng et al., arXiv 2111.08276): for pretraining, retrieval, captioning and questions.

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
from torch import Tensor
from transformers import AutoConfig, AutoModel, DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from multiflow.base.errors import MultiflowError
from multiflow.families.answers import Answers, AnswersQuestions
from multiflow.families.pairs import matching_loss
from multiflow.families.xvlm import losses
from multiflow.families.xvlm.config import XVLMCaptioningConfig, XVLMConfig, XVLMRetrievalConfig, XVLMVQAConfig
from multiflow.families.xvlm.losses import next_token_losses
from multiflow.families.xvlm.text import TextEncoder
from multiflow.families.xvlm.towers import Batch, VisionEncoder, XVLMPairs, XVLMTower, head, read_batch

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
        self._add_towers_and_heads(config, predicts=True)
        self.bbox_head = head(config.text["width"], 4)
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


class XVLMForRetrieval(XVLMPairs):
    """The pretraining model without its heads for words and boxes: contrastive (ITC) and matching (ITM) loss."""

    config_class = XVLMRetrievalConfig

    config: XVLMRetrievalConfig

    def __init__(self, config: XVLMRetrievalConfig):
        super().__init__(config)
        self._add_towers_and_heads(config, predicts=False)
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


class XVLMForCaptioning(XVLMTower, GenerationMixin):
    """X-VLM that describes images: all text layers run causally, the fusion layers see the image.

    The head for masked words tells the next word. LM: cross-entropy of each next token with a smoothed target; the
    prompt with which a caption begins is left out with labels of -100.

    >>> model = mf.task_model(xvlm, "captioning", eos_token_id=102, pad_token_id=0)             # doctest: +SKIP
    >>> model.generate(pixel_values, prompt_ids, num_beams=3, min_length=5, max_length=20)      # doctest: +SKIP
    """

    config_class = XVLMCaptioningConfig
    main_input_name = "input_ids"  # what `generate` goes on from
    _tied_weights_keys = {  # noqa: RUF012 (the form that transformers reads)
        "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight"
    }

    config: XVLMCaptioningConfig

    def __init__(self, config: XVLMCaptioningConfig):
        super().__init__(config)
        self.vision_encoder = VisionEncoder(config.vision, config.image_size, config.patch_size)
        self.text_encoder = TextEncoder(config.text)
        self.post_init()

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 side side"] | None = None,
        input_ids: Int[Tensor, "texts length"] | None = None,
        attention_mask: Int[Tensor, "texts all"] | None = None,
        labels: Int[Tensor, "texts length"] | None = None,
        image_embeds: Float[Tensor, "texts tokens width"] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Compute the logits of each next token, and the loss where labels are given.

        Args:
            pixel_values: normalised images, one for each caption.
            input_ids: captions, [CLS] and the prompt included; while `generate` runs, their new tokens.
            attention_mask: which tokens are real (1), those of the cache included; `generate` leaves it out.
            labels: the captions again, -100 where a token does not count (they are shifted here).
            image_embeds: while `generate` runs, the images as `encode_image` gives them.
            past_key_values: while `generate` runs, the cache of the tokens before; it is added to.
            return_dict: what `generate` asks for, and gets in any case.

        Raises:
            MultiflowError: a key is missing, or the sizes do not fit together.
        """
        if image_embeds is None or input_ids is None:
            given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
            batch = read_batch(given, losses=False)
            input_ids, attention_mask = batch.input_ids, batch.attention_mask
            image_embeds = self.encode_image(batch.pixel_values)
        states = self.text_encoder.bert.decode(input_ids, attention_mask, image_embeds, cache=past_key_values)
        logits = self.text_encoder.cls.predictions(states)
        loss = None
        if labels is not None:
            if labels.shape != input_ids.shape:
                shapes = f"labels has shape {tuple(labels.shape)} and input_ids {tuple(input_ids.shape)}"
                raise MultiflowError(f"{shapes}; give one label for each token")
            losses = next_token_losses(logits, labels, self.config.label_smoothing)
            loss = losses.sum() / (labels[:, 1:] != -100).sum().clamp(min=1)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, pixel_values: Float[Tensor, "images 3 side side"], input_ids: Int[Tensor, "images start"], **options: Any
    ) -> Any:
        """Caption images with transformers' ``generate``: each image goes through the vision tower once.

        Args:
            pixel_values: normalised images.
            input_ids: what each caption begins with, [CLS] and the prompt, without padding. It counts in the lengths.
            options: what ``generate`` takes, such as ``num_beams``, ``min_length``, ``max_length``, ``use_cache``.

        Returns:
            What ``generate`` returns: the token ids of the captions, their first ones included.
        """
        if len(pixel_values) != len(input_ids):
            given = f"pixel_values has {len(pixel_values)} rows and input_ids has {len(input_ids)}"
            raise MultiflowError(f"{given}; give the first tokens of a caption for each image")
        tokens = {"eos_token_id": self.config.eos_token_id, "pad_token_id": self.config.pad_token_id}
        if options.get("use_cache") is not False:
            options = {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()), **options}
        known = {"attention_mask": torch.ones_like(input_ids), "image_embeds": self.encode_image(pixel_values)}
        return GenerationMixin.generate(self, input_ids, **known, **{**tokens, **options})  # type: ignore[arg-type]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: EncoderDecoderCache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Leave out the tokens that the cache knows."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        kept = {name: kwargs.get(name) for name in ("attention_mask", "image_embeds")}
        return {**kept, "input_ids": input_ids[:, past:], "past_key_values": past_key_values}


class XVLMForVQA(AnswersQuestions, XVLMTower):
    """X-VLM that answers questions about images: the question sees the image, a decoder tells the answer.

    LM    = sum over the tokens of an answer, which begins with [CLS] and ends with [SEP], of -log p(token)
    score = log p(first token) - LM, in which the first token counts twice; then the softmax over the ``k`` answers

    >>> model = mf.task_model(xvlm, "vqa", image_size=384)                                            # doctest: +SKIP
    >>> best, _ = model.rank_answers(pixel_values, input_ids, mask, candidate_ids, candidate_mask)    # doctest: +SKIP
    """

    config_class = XVLMVQAConfig
    title = "X-VLM"
    _tied_weights_keys = {  # noqa: RUF012 (the form that transformers reads)
        "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight"
    }

    config: XVLMVQAConfig

    def __init__(self, config: XVLMVQAConfig):
        super().__init__(config)
        text = config.text
        layers = text["layers"] - text["fusion_layer"]
        decoder = {**text, "layers": layers, "fusion_layer": 0, "encoder_width": text["width"]}
        self.vision_encoder = VisionEncoder(config.vision, config.image_size, config.patch_size)
        self.text_encoder = TextEncoder(text, head=False)
        self.text_decoder = TextEncoder(decoder)
        self.post_init()

    def encode_question(
        self,
        pixel_values: Float[Tensor, "questions 3 side side"],
        input_ids: Int[Tensor, "questions length"],
        attention_mask: Int[Tensor, "questions length"],
    ) -> Float[Tensor, "questions length width"]:
        texts = self.text_encoder.bert.encode(input_ids, attention_mask)
        return self.text_encoder.bert.fuse(texts, attention_mask, self.encode_image(pixel_values))

    def _read(
        self, pixel_values: Tensor | None, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        batch = read_batch(given, losses=False)
        return batch.pixel_values, batch.input_ids, batch.attention_mask

    def _answer_losses(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        logits = self._decode(states, mask, answers)
        return next_token_losses(logits, answers.ids.masked_fill(answers.mask == 0, -100)).sum(1)

    def _first_logits(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        begin = answers.ids[:1, :1].expand(len(states), 1)
        return self._decode(states, mask, Answers(begin, torch.ones_like(begin)))[:, 0]

    def _score(self, first: Tensor, losses: Tensor) -> Tensor:
        return first - losses

    def _scale(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)

    def _decode(self, states: Tensor, mask: Tensor, answers: Answers) -> Tensor:
        decoded = self.text_decoder.bert.decode(answers.ids, answers.mask, states, mask, answers.owner)
        return self.text_decoder.cls.predictions(decoded)


for _model in (XVLMForPretraining, XVLMForRetrieval, XVLMForCaptioning, XVLMForVQA):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
