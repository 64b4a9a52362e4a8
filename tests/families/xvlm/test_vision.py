from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from tests.families.xvlm.sizes import small_model


@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_the_tower_is_clips(seed):
    """X-VLM starts from CLIP's vision tower: with the same weights both say the same."""
    tower = small_model(seed).vision_encoder
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=24, patch_size=8)).eval()
    theirs = {"patch_embed.": "embeddings.patch_embedding.", "pos_embed.": "embeddings.position_embedding."}
    theirs |= {"class_embedding": "embeddings.class_embedding"}
    state = {}
    for key, value in tower.state_dict().items():
        for ours, name in theirs.items():
            key = key.replace(ours, name)
        state[key] = value
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in clip.state_dict()) else ""
    clip.load_state_dict({prefix + key: value for key, value in state.items()})
    images = torch.randn(2, 3, 24, 24)
    expected = tower.post_layernorm(clip(images).last_hidden_state)
    torch.testing.assert_close(tower(images), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_local_layers_a_copy_is_the_image():
    sizes = {"width": 24, "layers": 1, "heads": 3, "mlp": 40, "local_attn_depth": 0}
    model = small_model(vision=sizes)
    images, index = torch.randn(2, 3, 24, 24), torch.tensor([1, 0, 1])
    copies, whole = model.vision_encoder(images, index, torch.ones(3, 10, dtype=torch.long)).split([3, 2])
    torch.testing.assert_close(whole, model.encode_image(images))
    torch.testing.assert_close(copies, whole[index])
