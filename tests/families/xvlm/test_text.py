from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from tests.families.xvlm.sizes import pairs, small_model


@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_without_fusion_the_tower_is_bert(seed):
    """With no fusion layer, and the same weights, BERT with its language-model head says the same."""
    sizes = {"width": 32, "layers": 2, "fusion_layer": 2, "heads": 2, "mlp": 48, "vocab_size": 50}
    tower = small_model(seed, text=sizes | {"max_position_embeddings": 16}).text_encoder
    names = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    bert = BertForMaskedLM(BertConfig(**names, vocab_size=50, max_position_embeddings=16)).eval()
    missing = bert.load_state_dict(tower.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    assert [key for key in missing.missing_keys if key != "cls.predictions.bias"] == []
    bert.cls.predictions.bias.copy_(tower.cls.predictions.decoder.bias)

    ids, mask = pairs()["input_ids"], pairs()["attention_mask"]
    hidden = tower.bert.encode(ids, mask)
    expected = bert(ids, attention_mask=mask, output_hidden_states=True)
    real = mask.bool()
    torch.testing.assert_close(hidden[real], expected.hidden_states[-1][real], rtol=1e-4, atol=1e-5)
    positions = torch.tensor([[1, 0], [2, 3], [3, 1], [0, 2]])
    logits = expected.logits[torch.arange(4)[:, None], positions]
    torch.testing.assert_close(tower.predict(hidden, positions), logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_image_index_is_the_same_as_copies_of_the_image():
    model, batch = small_model(), pairs()
    images, index = model.encode_image(batch["pixel_values"][:2]), torch.tensor([1, 0, 1, 1])
    image_mask = torch.randint(0, 2, images.shape[:2]).index_fill_(1, torch.tensor(0), 1)
    texts = model.encode_text(batch["input_ids"], batch["attention_mask"])
    indexed = model.fuse(texts, batch["attention_mask"], images, image_mask, index)
    torch.testing.assert_close(indexed, model.fuse(texts, batch["attention_mask"], images[index], image_mask[index]))


@torch.no_grad()
def test_fusion_ignores_masked_image_tokens():
    model, batch = small_model(), pairs(count=2)
    texts, images = model.encode_text(batch["input_ids"], batch["attention_mask"]), torch.randn(2, 10, 24)
    image_mask = (torch.arange(10) < 6).long().repeat(2, 1)
    full = model.fuse(texts, batch["attention_mask"], images, image_mask)
    torch.testing.assert_close(full, model.fuse(texts, batch["attention_mask"], images[:, :6]))
