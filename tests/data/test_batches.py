from __future__ import annotations

import io
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain

import pytest
import torch
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.data import Batches, Inputs, collate_pairs, open_data
from tests.data.worlds import (
    picture,
    samples,
    write_images,
    write_json,
    write_karpathy,
    write_shard,
    write_visual_genome,
)


@pytest.fixture
def inputs(tokenizer):
    return Inputs(tokenizer, image_size=16, patch_size=8, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def shards(tmp_path):
    """Ten pairs: the caption of picture n is "picture n"."""
    write_shard(tmp_path / "cc3m" / "00000.tar", samples(range(10)))
    return open_data(tmp_path / "cc3m")


def equal(one, two):
    """Whether two batches are the same, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    return torch.equal(one, two)


def numbers(batch):
    """The numbers of the pictures in a batch."""
    return (batch["pixel_values"][:, 0, 0, 0] * 255).round().int().tolist()


def words(batch, tokenizer):
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["input_ids"]]


def test_an_epoch_holds_every_pair_once_with_its_caption(shards, inputs):
    batches = Batches(shards, inputs, batch_size=4)
    made = list(batches)
    assert len(batches) == len(made) == 3
    assert [len(numbers(batch)) for batch in made] == [4, 4, 2]
    assert sorted(chain.from_iterable(map(numbers, made))) == list(range(10))
    for batch in made:
        assert words(batch, inputs.tokenizer) == [f"picture {n}" for n in numbers(batch)]
    assert str(batches.skipped) == "0 of 10 items skipped"


def test_the_same_batches_every_time(shards, inputs):
    batches = Batches(shards, inputs, batch_size=4, seed=3)
    first, second = list(batches), list(batches)
    assert all(map(equal, first, second))
    assert equal(batches.batch(1), first[1])
    assert all(map(equal, list(replace(batches, start=1)), first[1:]))
    assert all(map(equal, list(replace(batches, limit=2)), first[:2]))
    assert len(replace(batches, start=1)) == len(replace(batches, limit=2)) == 2
    for other in (replace(batches, seed=4), replace(batches, epoch=1)):
        assert [numbers(batch) for batch in other] != [numbers(batch) for batch in first]


def test_background_workers_make_the_same_batches(shards, inputs):
    batches = Batches(shards, inputs, batch_size=4)
    here, there = list(batches), list(replace(batches, workers=1))
    assert len(here) == len(there)
    assert all(map(equal, here, there))


def test_order_without_shuffling(shards, inputs):
    assert [numbers(batch) for batch in Batches(shards, inputs, batch_size=4, shuffle=False)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_pairs_in_memory(inputs):
    pairs = [(picture(i), f"picture {i}") for i in range(3)]
    (batch,) = Batches(pairs, inputs, shuffle=False, seed=2)
    images, captions = zip(*pairs, strict=True)
    shared = {"tokenizer": inputs.tokenizer, "image_size": 16, "mean": (0, 0, 0), "std": (1, 1, 1)}
    assert equal(batch, collate_pairs(images, captions, seed=2, position=0, **shared))


def test_without_mlm(shards, inputs):
    batch = next(iter(Batches(shards, replace(inputs, mlm=False))))
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}


def test_hidden_tokens_differ_between_epochs(inputs):
    pairs = [(picture(0), "a small red circle left of two big green square")]
    batches = Batches(pairs, inputs)
    hidden = {tuple(replace(batches, epoch=epoch).batch(0)["mlm_input_ids"][0].tolist()) for epoch in range(10)}
    assert len(hidden) > 5


def test_every_caption_of_an_image_has_its_turn(tmp_path, inputs):
    write_karpathy(tmp_path, ["train"] * 2)
    batches = Batches(open_data(tmp_path), inputs, shuffle=False)
    seen = {text for epoch in range(40) for text in words(replace(batches, epoch=epoch).batch(0), inputs.tokenizer)}
    assert seen == {f"caption {i} {j}" for i in range(2) for j in range(5)}


def test_broken_images_are_skipped_counted_and_named(tmp_path, inputs):
    members = samples(range(10))
    buffer = io.BytesIO()
    Image.effect_noise((60, 60), 90).convert("RGB").save(buffer, "JPEG")
    members["000000002.jpg"] = buffer.getvalue()[:-400]
    members["000000005.jpg"] = b"<html>404</html>"
    write_shard(tmp_path / "00000.tar", members)
    batches = Batches(open_data(tmp_path), inputs, batch_size=4, shuffle=False)
    for turn in range(2):
        with pytest.warns(UserWarning, match="2 of 10 items skipped: 00000.tar/0") if not turn else nullcontext():
            assert [numbers(batch) for batch in batches] == [[0, 1, 3], [4, 6, 7], [8, 9]]
        report = batches.skipped
        assert (report.seen, report.count) == (10, 2)
        assert report.names == ("00000.tar/000000002", "00000.tar/000000005")
        assert "truncated" in report.skips[0].reason
        assert report.skips[1].reason == "not an image file"
    with pytest.warns(UserWarning, match="2 of 10"):
        assert [numbers(batch) for batch in replace(batches, workers=1)] == [[0, 1, 3], [4, 6, 7], [8, 9]]


def test_a_batch_of_broken_images_is_left_out(tmp_path, inputs):
    members = samples(range(4)) | {"000000000.jpg": b"", "000000001.jpg": b"x"}
    write_shard(tmp_path / "00000.tar", members)
    batches = Batches(open_data(tmp_path), inputs, batch_size=2, shuffle=False)
    with pytest.warns(UserWarning, match="2 of 4"):
        assert [numbers(batch) for batch in batches] == [[2, 3]]
    assert batches.batch(0) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_images_is_an_error(tmp_path, inputs, workers):
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "a.png").write_text("no")
    (tmp_path / "b.png").write_text("no")
    write_json(tmp_path / "captions.json", {"a.png": "one", "b.png": "two"})
    batches = Batches(open_data(tmp_path), inputs, workers=workers, shuffle=False)
    with pytest.raises(MultiflowError, match=r"2 of 2 items skipped: a.png \(not an image"):
        list(batches)


def test_what_the_index_skipped_is_reported_too(tmp_path, inputs):
    write_images(tmp_path, ["a.png", "b.png"])
    write_json(tmp_path / "captions.json", {"a.png": "one", "b.png": " "})
    batches = Batches(open_data(tmp_path), inputs)
    with pytest.warns(UserWarning, match="1 of 2 items skipped"):
        list(batches)
    assert str(batches.skipped) == "1 of 2 items skipped: b.png (no caption)"


def test_regions_alone_give_region_batches(tmp_path, inputs):
    write_visual_genome(tmp_path, count=4, regions=3)
    batches = Batches(open_data(tmp_path), inputs, batch_size=5)
    made = list(batches)
    assert [len(batch["input_ids"]) for batch in made] == [5, 5, 2]
    seen = []
    for batch in made:
        of_text = torch.tensor(numbers(batch))[batch["image_index"]].tolist()
        for text, number, box in zip(words(batch, inputs.tokenizer), of_text, batch["boxes"].tolist(), strict=True):
            _, part, _, image = text.split()
            assert int(image) == number
            assert box == pytest.approx([(int(part) + 2) / 20, 0.25, 0.2, 0.5])  # 4 x 5 pixels of 20 x 10
            seen.append((number, int(part)))
    assert sorted(seen) == [(image, part) for image in range(4) for part in range(3)]


def test_at_most_so_many_texts_of_one_image(tmp_path, inputs):
    write_visual_genome(tmp_path, count=4, regions=9)
    batches = Batches(open_data(tmp_path), inputs, batch_size=100, max_regions=5)
    (batch,) = batches
    assert torch.bincount(batch["image_index"]).tolist() == [5, 5, 5, 5]


def test_pairs_and_regions_mixed(shards, tmp_path, inputs):
    write_visual_genome(tmp_path / "vg", count=2, regions=2)
    batches = Batches(open_data(tmp_path), inputs, batch_size=4, region_batch_size=3, seed=1)
    made = list(batches)
    assert len(made) == 3
    assert sorted(chain.from_iterable(map(numbers, made))) == list(range(10))
    # Four texts in batches of three: the regions start over.
    assert [len(batch["region"]["input_ids"]) for batch in made] == [3, 1, 3]
    assert all(map(equal, made, list(batches)))
    assert set(made[0]["region"]) == {
        *("pixel_values", "image_index", "input_ids", "attention_mask", "patch_mask", "boxes", "is_image"),
        *("mlm_input_ids", "mlm_positions", "mlm_labels"),
    }


def test_the_caption_of_the_whole_image_comes_first(tmp_path, inputs):
    write_images(tmp_path, ["a.png"])
    elements = [{"bb": [i, 0, 4, 5], "caption": f"part {i}"} for i in range(8)]
    write_json(tmp_path / "regions.json", [{"image": "a.png", "caption": "picture 0", "elems": elements}])
    batches = Batches(open_data(tmp_path), inputs, max_regions=3)
    for epoch in range(3):
        batch = replace(batches, epoch=epoch).batch(0)
        assert batch["is_image"].tolist() == [1, 0, 0]
        assert words(batch, inputs.tokenizer)[0] == "picture 0"
        assert batch["patch_mask"][0].all()


def test_boxes_outside_their_image_are_left_out_and_named(tmp_path, inputs):
    write_images(tmp_path, ["a.png", "b.png"])
    outside, partly = {"bb": [50, 0, 4, 5], "caption": "a"}, {"bb": [10, 0, 100, 10], "caption": "two"}
    flat = {"bb": [2, 0, 0, 5], "caption": "a"}
    records = [{"image": "a.png", "elems": [outside, partly, flat]}, {"image": "b.png", "elems": [outside]}]
    batches = Batches(open_data(write_json(tmp_path / "regions.json", records)), inputs, shuffle=False)
    with pytest.warns(UserWarning, match="3 of 4"):
        (batch,) = batches
    assert words(batch, inputs.tokenizer) == ["two"]
    assert batch["boxes"].tolist() == [[0.75, 0.5, 0.5, 1.0]]
    assert [skip.key for skip in batches.skipped.skips] == ["a.png, region 0", "a.png, region 2", "b.png, region 0"]
    assert "lies outside the image" in batches.skipped.skips[0].reason


def test_wrong_settings_are_refused(shards, tmp_path, inputs):
    for settings in ({"batch_size": 0}, {"limit": 0}, {"seed": -1}, {"workers": -1}):
        (name,) = settings
        with pytest.raises(MultiflowError, match=f"{name} .* was given; expected at least"):
            Batches(shards, inputs, **settings)
    write_visual_genome(tmp_path / "vg")
    with pytest.raises(MultiflowError, match="without a patch size; set patch_size in Inputs"):
        Batches(open_data(tmp_path / "vg"), replace(inputs, patch_size=None))
    with pytest.raises(MultiflowError, match="the epoch has batches 0 to 0"):
        Batches(shards, inputs).batch(1)


def test_an_error_in_a_worker_keeps_its_one_sentence(shards, inputs):
    batches = Batches(shards, replace(inputs, max_length=1), workers=1)
    with pytest.raises(MultiflowError, match=r"^max_length 1 was given; expected at least 2"):
        list(batches)


def test_questions_make_no_batches(tmp_path, inputs):
    write_images(tmp_path, ["a.png"])
    data = open_data(write_json(tmp_path / "vqa.json", [{"image": "a.png", "question": "what?"}]))
    with pytest.raises(MultiflowError, match=r"1 questions .* image-caption pairs or regions"):
        Batches(data, inputs)
