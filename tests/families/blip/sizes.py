"""A small BLIP of other sizes than the golden one, and batches for it."""

from __future__ import annotations

import torch
from torch import Tensor

from multiflow.families.blip.models import BlipForPretraining, BlipPretrainingConfig


def small_config(**changes: object) -> BlipPretrainingConfig:
    sizes = {
        "image_size": 24,
        "patch_size": 8,
        "embed_dim": 12,
        "queue_size": 10,
        "enc_token_id": 49,
        "bos_token_id": 48,
        "vision": {"width": 24, "layers": 2, "heads": 3, "mlp": 40},
        "text": {"width": 32, "layers": 2, "heads": 2, "mlp": 48, "vocab_size": 50, "max_position_embeddings": 16},
    }
    return BlipPretrainingConfig(**(sizes | changes))


def small_model(seed: int = 0, **changes: object) -> BlipForPretraining:
    torch.manual_seed(seed)
    model = BlipForPretraining(small_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initial zeros and ones, so that everything matters
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pairs(count: int = 4, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Random pairs; text ``i`` ends in ``i`` padding tokens (at most 3)."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 48, (count, length), generator=draw)
    mask = (torch.arange(length) < length - torch.arange(count).clamp(max=3)[:, None]).long()
    return {
        "pixel_values": torch.randn(count, 3, 24, 24, generator=draw),
        "input_ids": ids * mask,
        "attention_mask": mask,
    }


def questions(count: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Random questions with two answers to the first one, one to each other; answers differ in length."""
    draw = torch.Generator().manual_seed(seed + 100)
    answers = count + 1
    mask = (torch.arange(5) < 3 + torch.arange(answers)[:, None] % 3).long()
    return {
        **pairs(count, seed=seed),
        "answer_ids": torch.randint(3, 48, (answers, 5), generator=draw) * mask,
        "answer_mask": mask,
        "answer_weights": torch.rand(answers, generator=draw) + 0.1,
        "answers_per_question": torch.tensor([2] + [1] * (count - 1)),
    }
