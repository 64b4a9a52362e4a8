"""X-VLM for captioning (arXiv 2111.08276): all text layers run causally, the fusion layers see the image.

The head for masked words tells the next word. LM: cross-entropy of each next token with a smoothed target; the prompt
with which a caption begins is left out with labels of -100.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from multiflow.base.errors import MultiflowError
from multiflow.families.xvlm.batch import read_batch
from multiflow.families.xvlm.config import XVLMCaptioningConfig
from multiflow.families.xvlm.losses import next_token_losses
from multiflow.families.xvlm.text import TextEncoder
from multiflow.families.xvlm.towers import XVLMTower
from multiflow.families.xvlm.vision import VisionEncoder


class XVLMForCaptioning(XVLMTower, GenerationMixin):
    """X-VLM that describes images.

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
