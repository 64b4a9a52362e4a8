"""What BLIP's models for pretraining and retrieval have in common: towers that are compared and matched, and a memory.

The contrastive loss compares with features of slow (momentum) copies of the towers, those of earlier batches from
queues; the matching loss looks at the pairs of a batch and at hard negatives of them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from multiflow.base.parallel import gather_rows
from multiflow.families.blip import losses, parts
from multiflow.families.blip.config import BlipPretrainingConfig
from multiflow.families.blip.parts import read_pairs
from multiflow.families.pairs import PairModel

NO_IMAGE = torch.iinfo(torch.int64).min  # what stands for an image that no other pair shows
ONLINE = ("vision_model", "vision_proj", "text_encoder", "text_proj")
"""The modules that have a momentum copy, which is called the same with ``_m`` at the end."""

MEMORY = rf"^({'|'.join(ONLINE)})_m\.|^(image|text|image_ids)_queue$|^queue_ptr$"
"""Names of what is remembered. A file may leave it out: the copies then equal the online weights, queues are fresh."""


def as_buffers(module: nn.Module) -> nn.Module:
    """Turn the parameters of a module into buffers: saved and moved with it, but never trained, pruned or counted."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            delattr(part, name)
            part.register_buffer(name, None if parameter is None else parameter.detach())
    return module


def online_path(path: str) -> str:
    """Path of the module or parameter that a momentum copy follows; any other path as it is.

    >>> online_path("vision_model_m.encoder.layers.0.mlp.fc1")
    'vision_model.encoder.layers.0.mlp.fc1'
    """
    return re.sub(rf"^({'|'.join(ONLINE)})_m(?=\.|$)", r"\1", path)


def momentum_pairs(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [
        (model.get_buffer(f"{name}_m.{path}"), online)
        for name in ONLINE
        for path, online in model.get_submodule(name).named_parameters()
    ]


@torch.no_grad()
def follow(model: nn.Module, momentum: float) -> None:
    """Let each momentum tensor become ``momentum * itself + (1 - momentum) * online``."""
    for copy, online in momentum_pairs(model):
        copy.mul_(momentum).add_(online, alpha=1 - momentum)


@torch.no_grad()
def enqueue(queue: Float[Tensor, "dim size"], start: Int[Tensor, " 1"], features: Float[Tensor, "batch dim"]) -> None:
    """Write features over the oldest of a queue, from column ``start`` on and round its end; the last ones win."""
    size = queue.shape[1]
    columns = (start + torch.arange(len(features), device=queue.device)) % size
    queue[:, columns[-size:]] = features[-size:].T.to(queue.dtype)


class ContrastiveBlip(PairModel):
    """Abstract: the towers, their momentum copies (``*_m``) and the queues, with what can be asked of them.

    A call of `contrast` is a step of the memory: the copies move and the queues take in the batch. All of the memory is
    in the model's buffers: to put the buffers back is to undo the call. In a group of processes the queues take in the
    batches of all, so that all must call together; one without a batch calls `idle`.
    """

    _no_split_modules = ["BlipEncoderLayer", "BlipTextLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_missing = [MEMORY]  # noqa: RUF012

    config: BlipPretrainingConfig
    vision_model: BlipVisionModel
    text_encoder: BlipTextModel
    image_queue: Tensor
    text_queue: Tensor
    image_ids_queue: Tensor | None
    queue_ptr: Tensor

    def _add_heads_and_memory(self, config: BlipPretrainingConfig) -> None:
        """Add what the towers are compared and matched with; the last step of building a model but `post_init`."""
        vision_width, text_width = config.vision["width"], config.text["width"]
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
        self.register_buffer("image_ids_queue", None)  # the retrieval model has one
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ContrastiveBlip):
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
        return parts.ground(self.text_encoder, self.config, input_ids, attention_mask, image_embeds)

    def compared(
        self,
        pixel_values: Float[Tensor, "pairs 3 side side"] | None = None,
        input_ids: Int[Tensor, "pairs length"] | None = None,
        attention_mask: Int[Tensor, "pairs length"] | None = None,
        region: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return what the model says of the pairs of a batch, without labels, losses and memory.

        ``similarity`` (images by texts), ``match_logits`` of the pairs and of each text with the next image, and, with
        a decoder, ``word_logits`` of all real tokens. A batch under ``region`` is numbered ``region_...``.
        """
        pixels, ids, mask = read_pairs(self.config, pixel_values, input_ids, attention_mask)
        images, texts = self.encode_image(pixels), self.encode_text(ids, mask)
        features = self.image_features(images), self.text_features(texts)
        found = {"similarity": losses.similarity(features[0], features[1].T, self.temp)}
        both = torch.cat([images, images.roll(1, 0)])
        found["match_logits"] = self.itm_head(self.ground(ids.repeat(2, 1), mask.repeat(2, 1), both)[:, 0])
        if decoder := self._modules.get("text_decoder"):
            found["word_logits"] = decoder.cls(self.decode(ids, mask, images))[mask.bool()]  # type: ignore[operator]
        if region is not None:
            found |= {f"region_{name}": value for name, value in self.compared(**region).items()}
        return found

    @torch.no_grad()
    def idle(self) -> None:
        """Take the step of its memory that other processes take with a batch, without one."""
        follow(self, self.config.momentum)
        nothing = self.image_queue.new_zeros(0, self.config.embed_dim)
        self._enqueue(nothing, nothing, None)

    def contrast(
        self,
        pixel_values: Float[Tensor, "pairs 3 side side"],
        input_ids: Int[Tensor, "pairs length"],
        attention_mask: Int[Tensor, "pairs length"],
        image_feat: Float[Tensor, "pairs dim"],
        text_feat: Float[Tensor, "pairs dim"],
        alpha: float,
        image_ids: Int[Tensor, " pairs"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "pairs pairs"], Float[Tensor, "pairs pairs"]]:
        """Compute ITC of a batch with its own features, and take the batch into the memory.

        Args:
            pixel_values: images, for the momentum copies.
            input_ids: texts, for the momentum copies.
            attention_mask: which of their tokens are real (1).
            image_feat: features of the images.
            text_feat: features of the texts.
            alpha: share of the momentum model's opinion in the targets.
            image_ids: which image each pair shows: pairs of one image, in the batch and in the queue, match each
                other; None where every pair has an image of its own.

        Returns:
            The loss, and the similarities within the batch of images with texts and of texts with images.
        """
        count = len(input_ids)
        slow_image, slow_text = self._momentum_features(pixel_values, input_ids, attention_mask)
        all_images = torch.cat([slow_image.T, self.image_queue], dim=1)
        all_texts = torch.cat([slow_text.T, self.text_queue], dim=1)
        positives = None
        if image_ids is not None and self.image_ids_queue is not None:
            positives = image_ids[:, None] == torch.cat([image_ids, self.image_ids_queue[0]])
        image_sim = losses.similarity(image_feat, all_texts, self.temp)
        text_sim = losses.similarity(text_feat, all_images, self.temp)
        with torch.no_grad():
            image_target = losses.soft_targets(losses.similarity(slow_image, all_texts, self.temp), alpha, positives)
            text_target = losses.soft_targets(losses.similarity(slow_text, all_images, self.temp), alpha, positives)
        loss = (F.cross_entropy(image_sim, image_target) + F.cross_entropy(text_sim, text_target)) / 2
        self._enqueue(slow_image, slow_text, image_ids)
        return loss, image_sim[:, :count], text_sim[:, :count]

    def match(
        self,
        input_ids: Int[Tensor, "pairs length"],
        attention_mask: Int[Tensor, "pairs length"],
        image_embeds: Float[Tensor, "pairs tokens image_width"],
        image_sim: Float[Tensor, "pairs pairs"],
        text_sim: Float[Tensor, "pairs pairs"],
        seed: int,
        positives: Bool[Tensor, "pairs pairs"] | None = None,
    ) -> tuple[Float[Tensor, "pairs length width"], Float[Tensor, "rows 2"]]:
        """Ground the pairs, every text in a wrong image too, and in every image a wrong text.

        Args:
            input_ids: texts.
            attention_mask: which of their tokens are real (1).
            image_embeds: their images.
            image_sim: similarity of each image (row) with each text; the more similar ones are drawn more often.
            text_sim: similarity of each text (row) with each image.
            seed: of the draws.
            positives: which texts and images belong together; by default the pairs alone.

        Returns:
            The states of the right pairs, and the logits of them and then of the wrong ones, class 1 = match.
        """
        count = len(input_ids)
        own = torch.arange(count, device=input_ids.device)
        if positives is None:
            positives = own[:, None] == own
        image, text = losses.hard_negatives(image_sim, text_sim, seed, positives)
        found = own[~positives.all(1)]
        if len(found) < count:
            warnings.warn(
                "pairs have no hard negatives where a batch is about one image: loss_itm counts the pairs alone",
                stacklevel=4,
            )
        texts, images = torch.cat([own, found, text[found]]), torch.cat([own, image[found], found])
        states = self.ground(input_ids[texts], attention_mask[texts], image_embeds.index_select(0, images))
        return states[:count], self.itm_head(states[:, 0])

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
    def _enqueue(self, image: Tensor, text: Tensor, image_ids: Tensor | None) -> None:
        ids = self.queue_ptr.new_full((len(image), 1), NO_IMAGE) if image_ids is None else image_ids[:, None]
        image, text = gather_rows(torch.cat([image, text], dim=1).to(self.image_queue)).chunk(2, dim=1)
        enqueue(self.image_queue, self.queue_ptr, image)
        enqueue(self.text_queue, self.queue_ptr, text)
        if self.image_ids_queue is not None:
            enqueue(self.image_ids_queue, self.queue_ptr, gather_rows(ids))
        self.queue_ptr.add_(len(image)).remainder_(self.config.queue_size)


def fresh_queue(queue: Float[Tensor, "dim size"]) -> Float[Tensor, "dim size"]:
    """Draw random unit vectors of the shape and on the device of a queue; always the same ones."""
    draw = torch.randn(queue.shape, generator=torch.Generator().manual_seed(0))
    return F.normalize(draw, dim=0).to(queue)
