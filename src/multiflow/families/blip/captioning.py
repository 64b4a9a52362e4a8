"""BLIP for captioning (Li et al., arXiv 2201.12086): the image encoder, and the decoder that attends to the image.

LM: cross-entropy of each next token, labels smoothed by 0.1. ``labels`` are shifted by one inside, as everywhere in
transformers; what a caption begins with, such as the prompt, is left out of the loss with -100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from multiflow.base.errors import MultiflowError
from multiflow.families.blip import losses, parts
from multiflow.families.blip.batch import begin, read_pairs
from multiflow.families.blip.task_configs import BlipCaptioningConfig


@dataclass
class BlipCaptioningOutput(ModelOutput):
    """``loss``; ``logits`` (texts, length, vocabulary) of each next token."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class BlipForCaptioning(PreTrainedModel):
    """BLIP that describes images.

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
