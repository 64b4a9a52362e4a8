from __future__ import annotations

from pathlib import Path

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import Batches, Inputs, Mixed, join, open_data, whole_images
from tests.data.worlds import number_of, samples, write_images, write_json, write_shard, write_visual_genome


@pytest.fixture
def places(tmp_path):
    """Four pairs, three pairs, two images with regions, one question; each in a folder of its own."""
    write_shard(tmp_path / "a" / "00000.tar", samples(range(4)))
    write_shard(tmp_path / "b" / "00000.tar", samples(range(4, 7)))
    write_visual_genome(tmp_path / "vg", count=2, regions=3)
    write_images(tmp_path / "q", ["0.png"])
    write_json(tmp_path / "q" / "vqa.json", [{"image": "0.png", "question": "what?", "answer": "this"}])
    return tmp_path


def test_pairs_follow_pairs(places):
    data = open_data(f"{places}/a+{places}/b")
    assert (data.kind, len(data)) == ("pairs", 7)
    assert [number_of(data[i].image) for i in (0, 3, 4, 6, -1)] == [0, 3, 4, 6, 6]
    assert data.layout == "tar shards of img2dataset"
    with pytest.raises(IndexError):
        data[7]


def test_pairs_and_regions_are_mixed_in_any_order(places):
    data = open_data(f"{places}/vg+{places}/a+{places}/vg+{places}/b")
    assert isinstance(data, Mixed)
    assert (len(data.pairs), len(data.regions)) == (7, 4)
    assert data.regions.texts.tolist() == [3] * 4
    assert data.regions[3].regions == data.regions[1].regions
    assert isinstance(join([data, data]), Mixed)


def test_what_was_skipped_is_kept(places):
    write_shard(places / "b" / "00001.tar", {"x.jpg": b"no caption"})
    assert [skip.key for skip in open_data(f"{places}/a+{places}/b").skipped] == ["00001.tar/x"]


def test_questions_join_questions_only(places):
    data = open_data(f"{places}/q+{places}/q")
    assert [data.known(i).texts for i in range(len(data))] == [("this",), ("this",)]
    with pytest.raises(MultiflowError, match="1 questions .*; 4 pairs .*; expected pairs and regions"):
        open_data(f"{places}/q+{places}/a")
    with pytest.raises(MultiflowError, match="none was given"):
        join([])


def test_several_splits(tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    for number, split in enumerate(("train", "val")):
        write_json(tmp_path / f"coco_{split}.json", [{"image": f"{number}.png", "caption": split}])
    assert [pair.captions[0] for pair in open_data(tmp_path, split="train+val")] == ["train", "val"]


def test_a_folder_of_images_for_each(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / "pictures" / name, [f"{name}.png"])
        write_json(tmp_path / f"{name}.json", [{"image": f"{name}.png", "caption": name}])
    source = f"{tmp_path}/a.json+{tmp_path}/b.json"
    assert len(open_data(source, images=f"{tmp_path}/pictures/a+{tmp_path}/pictures/b")) == 2
    with pytest.raises(MultiflowError, match="3 image folders .* 2 sources; give one"):
        open_data(source, images="x+y+z")


def test_a_plus_in_a_path_is_a_path(tmp_path):
    write_shard(tmp_path / "a+b" / "00000.tar", samples(range(2)))
    assert len(open_data(tmp_path / "a+b")) == 2
    with pytest.raises(MultiflowError, match=r"names nothing on one side of a '\+'"):
        open_data("a+")
    with pytest.raises(MultiflowError, match=r"no data at '.*/c': no such file"):
        open_data(f"{tmp_path}/a+b+{tmp_path}/c".replace("a+b", "c"))


def test_regions_as_whole_images(places, tokenizer):
    data = whole_images(open_data(f"{places}/a+{places}/vg"))
    assert data.regions[1].captions == ("part 0 of 1", "part 1 of 1", "part 2 of 1")
    inputs = Inputs(tokenizer, image_size=16, mean=(0, 0, 0), std=(1, 1, 1), mlm=False, end=True)
    batches = Batches(data, inputs, batch_size=2, region_batch_size=1)
    made = list(batches)
    assert len(made) == 2
    for batch in made:
        inner = batch["region"]
        assert set(inner) == {"pixel_values", "input_ids", "attention_mask"}
        (number,) = (inner["pixel_values"][:, 0, 0, 0] * 255).round().int().tolist()
        (text,) = [tokenizer.decode(ids, skip_special_tokens=True) for ids in inner["input_ids"]]
        assert text.split()[0] == "part"
        assert text.endswith(f"of {number}")
    alone = whole_images(open_data(places / "vg"))
    assert (alone.kind, len(alone)) == ("pairs", 2)
    assert whole_images(alone) is alone


def test_the_sources_are_named(places):
    data = open_data(f"{places}/a+{places}/b")
    assert str(data) == f"7 pairs from {Path(places / 'a')} + {Path(places / 'b')} (tar shards of img2dataset)"
