"""Example inputs of a model, of any number of samples: to time it, what they hold does not matter."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError

TOKENS = 20  # of a text
FRAMES, SAMPLES = 400, 16000  # of a sound, where the config says nothing of its length


def example_batch(model: Any, samples: int) -> dict[str, Tensor]:
    """Return random images, sounds and texts in the sizes that the config of a model says.

    Args:
        model: one that takes ``pixel_values``, ``input_ids`` or both, without special tokens for images, or sounds as
            ``input_features`` or ``input_values``.
        samples: how many.

    Raises:
        MultiflowError: the model takes neither, or its config has no sizes.
    """
    accepted = signature(model.forward).parameters
    config = getattr(model, "config", None)
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, Tensor] = {}
    if "pixel_values" in accepted:
        size = _size(config, "image_size", ("vision_config", "vision"))
        channels = _size(config, "num_channels", ("vision_config", "vision")) or 3
        if size:
            batch["pixel_values"] = torch.randn(samples, channels, size, size, generator=generator)
    if "input_ids" in accepted:
        words = _size(config, "vocab_size", ("text_config", "text"))
        longest = _size(config, "max_position_embeddings", ("text_config", "text")) or TOKENS
        if words:
            ids = torch.randint(words // 2, words, (samples, min(TOKENS, longest)), generator=generator)
            batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch |= _sounds(accepted, config, samples, generator)
    if not batch:
        raise MultiflowError(
            f"no example inputs can be made for a {type(model).__name__}: it takes no pixel_values and input_ids whose "
            "sizes its config says; give a batch"
        )
    return batch


def _sounds(accepted: Mapping[str, Any], config: Any, samples: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return random sounds and what a decoder reads, for a model that takes them; empty for another."""
    batch: dict[str, Tensor] = {}
    if "input_features" in accepted and (bins := _size(config, "num_mel_bins", ())):  # Whisper: (bins, frames)
        frames = 2 * _size(config, "max_source_positions", ()) or FRAMES
        batch["input_features"] = torch.randn(samples, bins, frames, generator=generator)
    elif "input_features" in accepted and (bins := _size(config, "input_feat_per_channel", ())):  # (frames, bins)
        batch["input_features"] = torch.randn(samples, FRAMES, bins, generator=generator)
    elif "input_values" in accepted:
        batch["input_values"] = torch.randn(samples, SAMPLES, generator=generator)
    if batch and "decoder_input_ids" in accepted and (words := _size(config, "vocab_size", ())):
        batch["decoder_input_ids"] = torch.randint(words // 2, words, (samples, TOKENS), generator=generator)
    return batch


def resized(batch: Any, samples: int) -> Any | None:
    """Return a batch of as many samples, repeated or cut; None if its entries do not agree on how many they have.

    >>> resized({"ids": torch.zeros(2, 5), "mask": torch.ones(2, 5)}, 3)["ids"].shape
    torch.Size([3, 5])
    """
    if isinstance(batch, Tensor):
        return batch[torch.arange(samples, device=batch.device) % len(batch)]
    if not isinstance(batch, Mapping):
        return None
    sizes = {len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()}
    if len(sizes) != 1 or 0 in sizes or not all(isinstance(value, Tensor) for value in batch.values()):
        return None
    return {name: resized(value, samples) if value.dim() else value for name, value in batch.items()}


def cast(batch: Any, model: nn.Module) -> Any:
    """Return a batch whose floating point entries have the dtype of the model's parameters."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    return {name: cast(value, model) for name, value in batch.items()} if isinstance(batch, Mapping) else batch


def _size(config: Any, name: str, parts: tuple[str, ...]) -> int:
    """Look a size up in a config and its parts; 0 if it is not there."""
    places = [getattr(config, part, None) for part in parts]
    for place in (*places, config):
        value = place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    return 0


class NamedInputs(nn.Module):
    """A model as a function of tensors by position, which gives a tuple of tensors: what exporters follow.

    Args:
        model: whose forward takes ``return_dict``.
        inputs: names of what it is given, in order.
        outputs: names of what it gives.
    """

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the model."""
        out = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        return tuple(out[name] for name in self.outputs)
