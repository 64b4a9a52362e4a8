from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.calibration import evaluating
from multiflow.data import BrokenItem, Pair, augment, encode_texts, to_pixels
from multiflow.data.dataset import from_memory
from multiflow.data.items import take_items
from multiflow.tasks.inputs import (
    Pixels,
    TaskInputs,
    clean,
    labels_of,
    make_samples,
    samples_at,
    text_inputs,
    training_picture,
)
from tests.tiny import TOKENIZER, tiny

HALVES = np.zeros((16, 16, 3), np.uint8)
HALVES[:, 8:] = 255  # black on the left, white on the right


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own():
    inputs = TaskInputs(8, seed=3)
    line = [sample for position in range(6) for sample in samples_at(10, inputs, 5, position)]
    assert [number for number, _ in line] == list(range(30))
    epochs = [[index for _, index in line[i : i + 10]] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_evaluation_leaves_no_image_out():
    read = from_memory([(HALVES, "one"), (HALVES, "two")])

    def broken(index):
        if index:
            raise BrokenItem("b.png", "it is truncated")
        return read[index]

    data = replace(take_items(read), read=broken)
    assert len(Pixels(data, TaskInputs(8))[:1]) == 1
    with pytest.raises(MultiflowError, match=r"cannot read 'b.png' of 2 items from .*: it is truncated; fetch"):
        Pixels(data, TaskInputs(8))[:]


def test_what_is_drawn_depends_on_seed_and_position_alone():
    inputs = TaskInputs(8)
    assert samples_at(7, inputs, 3, 5) == samples_at(7, inputs, 3, 5)
    assert samples_at(7, inputs, 3, 5) != samples_at(7, TaskInputs(8, seed=1), 3, 5)
    together = samples_at(7, inputs, 6, 2)
    assert together == samples_at(7, inputs, 3, 4) + samples_at(7, inputs, 3, 5)


def test_batches_are_full_even_of_less_data_than_that():
    assert len(samples_at(2, TaskInputs(8), 5, 0)) == 5
    with pytest.raises(MultiflowError, match="batch_size 0 and position 0 were given"):
        samples_at(2, TaskInputs(8), 0, 0)


@pytest.mark.parametrize(("text", "flips"), [("a dog", True), ("a dog, left of a cat", False)])
def test_no_image_is_flipped_whose_texts_name_a_side(text, flips, monkeypatch):
    monkeypatch.setattr(augment, "rand_augment", lambda picture, names, chance: picture)
    inputs = TaskInputs(16, augment=True)
    item = Pair(HALVES, ("a dog",), "k")
    made = [training_picture(item, ("is it?", text), inputs, n).astype(int) for n in range(40)]
    mirrored = [x for x in made if x[:, :4].mean() > x[:, -4:].mean() + 100]
    assert bool(mirrored) == flips


def test_augmentation_is_a_function_of_the_sample():
    inputs = TaskInputs(16, augment=True)
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    item = Pair(Image.fromarray(noise), ("x",), "k")
    a, b, other = (training_picture(item, (), inputs, n) for n in (4, 4, 5))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, other)
    assert a.shape == (16, 16, 3)
    plain = training_picture(item, (), TaskInputs(16), 4)
    assert np.array_equal(plain, training_picture(item, (), TaskInputs(16), 5))


def test_crops_take_at_least_half_of_the_image(monkeypatch):
    monkeypatch.setattr(augment, "rand_augment", lambda picture, names, chance: picture)
    columns = np.broadcast_to(np.arange(0, 240, 4, np.uint8)[:, None], (60, 60, 3)).copy()  # from dark to bright
    item, inputs = Pair(columns, ("x",), "k"), TaskInputs(60, augment=True)
    made = [training_picture(item, ("on the left",), inputs, n).astype(int) for n in range(200)]
    widths = [(x[0, -1, 0] - x[0, 0, 0]) / 236 for x in made]
    narrowest = (0.5 * 3 / 4) ** 0.5  # half of the area, at the least width / height
    assert narrowest - 0.05 < min(widths) < narrowest + 0.1
    assert max(widths) > 0.95


def test_pixels_are_made_slice_by_slice():
    pictures = [np.full((8, 8, 3), n, np.uint8) for n in range(5)]
    pixels = Pixels(take_items(from_memory([(p, "x") for p in pictures])), TaskInputs(8, augment=True))
    assert len(pixels) == 5
    assert torch.equal(pixels[1:3], torch.from_numpy(to_pixels(pictures[1:3], 8)))
    assert pixels[4:9].shape == (1, 3, 8, 8)


def test_broken_images_are_left_out_of_a_batch_with_a_warning():
    def make(number, index):
        if index % 2:
            raise BrokenItem(f"{index}.jpg", "cut off")
        return index

    with pytest.warns(UserWarning, match=r"'1.jpg' is left out of a batch: cut off"):
        assert make_samples(make, [(0, 0), (1, 1), (2, 2)]) == [0, 2]
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(MultiflowError, match="no image of a batch can be read"),
    ):
        make_samples(make, [(0, 1)])


def test_an_image_that_cannot_be_decoded_is_a_broken_item(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    with Image.open(tmp_path / "a.png") as cut, pytest.raises(BrokenItem, match=r"a\.png"):
        training_picture(Pair(cut, ("x",), "a.png"), (), TaskInputs(8), 0)


@pytest.mark.parametrize(("family", "ends", "length"), [("xvlm", False, 40), ("blip", True, 35)])
def test_texts_as_each_family_reads_them(family, ends, length):
    inputs = text_inputs(tiny(family, "vqa"), TOKENIZER)
    assert (inputs.ends, inputs.max_length) == (ends, length)
    ids, mask = inputs.encode(["a red star", "a"])
    want = encode_texts(TOKENIZER, ["a red star", "a"], end=ends)
    assert (ids.tolist(), mask.tolist()) == (want[0].tolist(), want[1].tolist())
    assert (inputs.encode(["a"], end=True)[0][0, -1] == TOKENIZER.sep_token_id).item()


def test_lengths_and_tokenizers_that_do_not_fit():
    with pytest.raises(MultiflowError, match="max_length 99 was given; expected 3 to 40 tokens"):
        text_inputs(tiny("xvlm", "vqa"), TOKENIZER, max_length=99)
    model = tiny("xvlm", "vqa")
    larger = type(TOKENIZER)(tokenizer_object=TOKENIZER.backend_tokenizer)
    larger.add_tokens(["zebra"])
    with pytest.raises(MultiflowError, match="109 tokens, .* 108"):
        text_inputs(model, larger)


def test_clean_text():
    assert clean('  A dog; "left" (of) it!\n') == "a dog left of it"
    assert clean("is it red, or not?") == "is it red, or not?"


def test_labels_leave_out_prompt_and_padding():
    ids, mask = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    assert labels_of(ids, mask, 2).tolist() == [[-100, -100, 3, 4], [-100, -100, 3, -100]]


def test_the_mode_of_a_model_is_given_back():
    model = torch.nn.Linear(1, 1).train()
    with pytest.raises(ValueError), evaluating(model):
        assert not model.training
        raise ValueError
    assert model.training
