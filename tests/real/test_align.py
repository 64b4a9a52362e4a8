"""Aligning two small towers: only what is on top is trained, a killed training goes on to the same bits."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, VisionTextDualEncoderModel

from benchmarks.real.align import (
    Things,
    loss_of,
    lower_text,
    lower_vision,
    pixels,
    recalls,
    train,
    trained,
    upper_text,
    upper_vision,
    variant,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    vision = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=14, patch_size=7
    )
    text = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40)
    return VisionTextDualEncoderModel(vision_model=Dinov2Model(vision), text_model=BertModel(text)).eval()


def things_of(model, count: int = 12) -> Things:
    drawn = torch.Generator().manual_seed(1)
    images = lower_vision(model, torch.randn(count, 3, 14, 14, generator=drawn))
    ids = torch.randint(1, 40, (count * 2, 5), generator=drawn)
    mask = torch.ones_like(ids)
    mask[::3, 3:] = 0
    texts = lower_text(model, ids, mask)
    return Things(images[:, None], texts.unflatten(0, (count, 2)), mask.unflatten(0, (count, 2)), torch.arange(count))


def test_the_parts_are_the_whole_model(model):
    drawn = torch.Generator().manual_seed(2)
    images, ids = torch.randn(3, 3, 14, 14, generator=drawn), torch.randint(1, 40, (3, 5), generator=drawn)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        out = model(pixel_values=images, input_ids=ids, attention_mask=mask)
        torch.testing.assert_close(upper_vision(model, lower_vision(model, images)), out.image_embeds)
        torch.testing.assert_close(upper_text(model, lower_text(model, ids, mask), mask), out.text_embeds)


def test_only_the_last_layers_are_trained_and_the_pairs_are_learned(model, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    things, losses = things_of(model), []
    train(model, things, tmp_path / "kept", epochs=12, after=lambda epoch, loss, seconds: losses.append(loss))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= trained(model).keys()
    assert "vision_model.encoder.layer.1.mlp.fc1.weight" in changed
    assert len(losses) == 12
    assert losses[-1] < losses[0]


def test_a_killed_training_goes_on_to_the_same_bits(model, tmp_path):
    things = things_of(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, things, tmp_path / "straight", epochs=4, after=lambda *told: None)
    straight = {name: value.clone() for name, value in model.state_dict().items()}

    def killed(epoch: int, loss: float, seconds: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    model.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        train(model, things, tmp_path / "kept", epochs=4, after=killed)
    model.load_state_dict(start)
    told: list[int] = []
    train(model, things, tmp_path / "kept", epochs=4, after=lambda epoch, *rest: told.append(epoch))
    assert told == [2, 3]
    assert all(torch.equal(value, straight[name]) for name, value in model.state_dict().items())


def test_things_of_one_name_are_equally_right(model):
    model.logit_scale.data.fill_(3.0)
    vectors = torch.eye(3)
    swapped = vectors[[1, 0, 2]]
    assert loss_of(model, vectors, swapped, torch.tensor([0, 1, 2])) > 5
    same = loss_of(model, vectors, swapped, torch.tensor([0, 0, 2]))
    torch.testing.assert_close(same, loss_of(model, vectors, vectors, torch.tensor([0, 0, 2])))


def test_recall_counts_both_ways(model):
    one, ten = recalls(model, things_of(model))
    assert 0 <= one <= ten <= 100


def test_a_variant_is_a_function_of_its_numbers():
    picture = Image.new("RGB", (14, 14), "white")
    picture.paste("red", (2, 2, 8, 12))
    assert variant(picture, 0, 5) is picture
    assert variant(picture, 1, 5).tobytes() == variant(picture, 1, 5).tobytes() != variant(picture, 1, 6).tobytes()
    assert pixels([picture, variant(picture, 1, 5)]).shape == (2, 3, 14, 14)
