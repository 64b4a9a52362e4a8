"""A small X-VLM of other sizes than the golden one, and batches for it."""

from __future__ import annotations

import torch
from torch import Tensor

from multiflow.families.xvlm.models import XVLMConfig, XVLMForPretraining


def small_config(**changes: object) -> XVLMConfig:
    sizes = {
        "image_size": 24,
        "patch_size": 8,
        "embed_dim": 12,
        "vision": {"width": 24, "layers": 3, "heads": 3, "mlp": 40, "local_attn_depth": 2},
        "text": {"width": 32, "layers": 3, "fusion_layer": 1, "heads": 2, "mlp": 48, "vocab_size": 50}
        | {"max_position_embeddings": 16},
    }
    return XVLMConfig(**(sizes | changes))


def small_model(seed: int = 0, **changes: object) -> XVLMForPretraining:
    torch.manual_seed(seed)
    model = XVLMForPretraining(small_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initial zeros and ones, so that everything matters
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pairs(count: int = 4, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Random pairs; text ``i`` ends in ``i`` padding tokens (at most 3)."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (count, length), generator=draw)
    mask = (torch.arange(length) < length - torch.arange(count).clamp(max=3)[:, None]).long()
    return {
        "pixel_values": torch.randn(count, 3, 24, 24, generator=draw),
        "input_ids": ids * mask,
        "attention_mask": mask,
        "mlm_input_ids": ids.clone().index_fill_(1, torch.tensor([1, 2]), 2) * mask,
        "mlm_positions": torch.tensor([1, 2, 0]).repeat(count, 1),
        "mlm_labels": torch.cat([ids[:, 1:3], torch.full((count, 1), -100)], dim=1),
    }


def regions(count: int = 4, seed: int = 1) -> dict[str, Tensor]:
    """Texts over regions of two images, two texts for each in turn."""
    draw = torch.Generator().manual_seed(seed)
    patch_mask = torch.randint(0, 2, (count, 10), generator=draw)
    patch_mask[:, 0] = 1
    batch = pairs(count, seed=seed)
    return batch | {
        "pixel_values": batch["pixel_values"][:2],
        "image_index": torch.arange(count) % 2,
        "patch_mask": patch_mask,
        "boxes": torch.rand(count, 4, generator=draw),
        "is_image": (torch.arange(count) == 1).long(),
    }
