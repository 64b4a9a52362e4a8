from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor

import multiflow as mf
from multiflow.base.artifacts import read_facts
from multiflow.base.errors import MultiflowError
from multiflow.training.tracking import read_metrics
from multiflow.worlds.digits.vit import (
    DigitsTraining,
    augmented,
    digit_accuracy,
    digit_batches,
    digits,
    digits_model,
    train_digits,
)

SMALL = DigitsTraining(patch_size=8, width=12, layers=1, mlp=16, steps=6, batch_size=8, checkpoint_every=2)


class Stopped(Exception):
    """Ends a run in the middle."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, train_digits(SMALL, out)


def test_the_model_is_released_with_its_processor_and_a_card(whole):
    out, figures = whole
    assert read_facts(out / "figures.json", "figures", "") == figures
    model = mf.load_model(out / "model")
    assert model.config.label2id == {str(digit): digit for digit in range(10)}
    assert model.dtype == torch.float32
    stored = load_file(out / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert figures == {"accuracy": digit_accuracy(model, digit_batches("test"))}
    card = (out / "model" / "README.md").read_text()
    assert f"test split: {figures['accuracy']:.1f} %" in card
    assert "1,437 images to train,\n360 to test" in card
    assert "`multiflow digits OUT_DIR --patch-size 8 --width 12 --layers 1 --mlp 16 --steps 6 --batch-size 8 " in card
    assert {"loss", "accuracy"} <= set(read_metrics(out / "vit")[-1])


def test_the_processor_makes_the_pixels_of_the_batches(whole):
    processor = AutoImageProcessor.from_pretrained(whole[0] / "model", backend="pil")
    images = digits("test")[0]
    made = processor([image[:, :, None].repeat(3, 2) for image in images[:5]], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made, digit_batches("test", batch_size=5, limit=1)[0]["pixel_values"])


def test_a_run_that_was_stopped_resumes_to_the_same_bits(whole, tmp_path):
    def stop(progress):
        if progress.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train_digits(SMALL, tmp_path, progress=stop)
    with pytest.raises(MultiflowError, match="already holds a run"):
        train_digits(SMALL, tmp_path)
    with pytest.raises(MultiflowError, match=r"width \(12 then, 24 now\)"):
        train_digits(replace(SMALL, width=24), tmp_path, resume=True)
    assert train_digits(SMALL, tmp_path, resume=True) == whole[1]
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (whole[0] / weights).read_bytes()


def test_the_model_depends_on_the_seed_alone():
    one = digits_model(SMALL).state_dict()
    torch.manual_seed(99)
    two = digits_model(SMALL).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = digits_model(replace(SMALL, seed=1))
    assert not torch.equal(one["classifier.weight"], other.classifier.weight)
    assert 100_000 < digits_model(DigitsTraining()).num_parameters() < 130_000


def test_images_are_moved_a_little_as_the_seed_says():
    (data,) = digit_batches("train", batch_size=1437)
    one, two, other = (augmented(data, 64, seed) for seed in (1, 1, 2))
    assert torch.equal(one["pixel_values"], two["pixel_values"])
    assert not torch.equal(one["labels"], other["labels"])
    assert one["pixel_values"].shape == (64, 3, 16, 16)
    means = torch.stack([data["pixel_values"][data["labels"] == digit].mean(0) for digit in range(10)])

    def nearest(batch):
        distance = (batch["pixel_values"][:, None] - means).flatten(2).norm(dim=2)
        return (distance.argmin(1) == batch["labels"]).float().mean()

    assert 0.5 < nearest(one) < nearest(data)  # moved, but still the digits that the labels say


def test_accuracy_counts_every_image_once():
    model = digits_model(SMALL).train()
    with torch.no_grad():
        model.classifier.bias[3] += 1e4
    share = 100 * (digits("test")[1] == 3).mean()
    for size in (7, 360):
        assert digit_accuracy(model, digit_batches("test", batch_size=size)) == pytest.approx(share)
    assert model.training
