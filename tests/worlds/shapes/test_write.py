from __future__ import annotations

import json
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.data import Mixed, open_data
from multiflow.worlds.shapes import describe, make_scenes, questions, regions, render, write

SMALL = {"train": 22, "val": 5, "test": 4, "size": 32, "seed": 2, "shard_size": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shapes") / "world", **SMALL)


def scenes(split: str, count: int, style: str = "plain", start: int = 0) -> list:
    return make_scenes(split, count, seed=2, style=style, start=start)


def load(path: Path) -> dict | list:
    return json.loads(path.read_text())


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def close(picture: Image.Image, expected: np.ndarray) -> bool:
    return bool(np.abs(np.asarray(picture.convert("RGB"), int) - expected).mean() < 5)


def test_the_same_seed_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "elsewhere", **SMALL)
    assert content(again) == content(world)
    other = content(write(tmp_path / "other", **{**SMALL, "seed": 3}))
    assert set(other) == set(content(world))
    changed = {name for name, digest in content(world).items() if other[name] != digest}
    assert {n for n in other if not n.endswith(("stats.json", "image_data.json"))} == changed


def test_cc3m_shards(world: Path) -> None:
    folder = world / "pretrain/cc3m"
    shards = sorted(path.name for path in folder.iterdir())
    assert shards == [f"0000{i}{end}" for i in range(3) for end in (".tar", "_stats.json")]
    assert load(folder / "00002_stats.json")["status_dict"] == {"success": 6}
    with tarfile.open(folder / "00001.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members[:4]] == ["000010000.jpg", "000010000.txt", "000010000.json", "000010001.jpg"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        about = json.load(tar.extractfile("000010003.json"))
        picture = tar.extractfile("000010003.jpg").read()
        caption = tar.extractfile("000010003.txt").read().decode()
    scene = scenes("train", 1, start=8 + 3)[0]
    assert caption == about["caption"] == describe(scene)[0]
    assert (about["key"], about["status"], about["width"], about["height"]) == ("000010003", "success", 32, 32)
    assert about["sha256"] == sha256(picture).hexdigest()


def test_shards_are_read_by_the_loader(world: Path) -> None:
    data = open_data(world / "pretrain/cc3m")
    assert (data.kind, len(data), data.skipped) == ("pairs", 22, ())
    for pair, scene in zip(data, scenes("train", 22), strict=True):
        assert pair.captions == (describe(scene)[0],)
        assert close(pair.image, render(scene, 32))


def test_visual_genome_regions(world: Path) -> None:
    data = open_data(world / "pretrain/vg")
    assert (data.kind, len(data), data.skipped) == ("regions", 11, ())
    for item, scene in zip(data, scenes("train", 11, start=22), strict=True):
        assert close(item.image, render(scene, 32))
        for region, (phrase, (cx, cy, width, height)) in zip(item.regions, regions(scene), strict=True):
            assert region.captions == (phrase,)
            x, y, w, h = region.box
            np.testing.assert_allclose([x + w / 2, y + h / 2, w, h], np.multiply([cx, cy, width, height], 32), atol=1)
            assert x >= 0
            assert y >= 0
            assert max(x + w, y + h) <= 32
    descriptions = load(world / "pretrain/vg/region_descriptions.json")
    ids = [region["region_id"] for entry in descriptions for region in entry["regions"]]
    assert len(ids) == len(set(ids))
    known = load(world / "pretrain/vg/image_data.json")
    assert [(k["image_id"], k["width"], k["height"]) for k in known] == [(i, 32, 32) for i in range(1, 12)]


def test_pretraining_data_hold_no_other(world: Path) -> None:
    data = open_data(world / "pretrain")
    assert isinstance(data, Mixed)
    assert sorted(len(part) for part in (data.pairs, data.regions)) == [11, 22]


@pytest.mark.parametrize(
    ("folder", "style", "counts"),
    [("coco", "chalk", {"train": 11, "val": 5, "test": 4}), ("coco_plain", "plain", {"val": 5, "test": 4})],
)
def test_karpathy_json(world: Path, folder: str, style: str, counts: dict[str, int]) -> None:
    for split, count in counts.items():
        data = open_data(world / folder, split=split)
        assert (data.kind, len(data)) == ("pairs", count)
        for pair, scene in zip(data, scenes(split, count, style), strict=True):
            assert pair.captions == tuple(describe(scene))
            assert close(pair.image, render(scene, 32))


def test_karpathy_fields(world: Path) -> None:
    dataset = load(world / "coco/dataset_coco.json")
    assert dataset["dataset"] == "coco"
    images = dataset["images"]
    assert [image["imgid"] for image in images] == list(range(20))
    sentences = [sentence for image in images for sentence in image["sentences"]]
    assert [s["sentid"] for s in sentences] == [i for image in images for i in image["sentids"]] == list(range(100))
    assert images[0]["filename"] == "COCO_train2014_000000000001.jpg"
    assert {(i["split"], i["filepath"]) for i in images} == {
        ("train", "train2014"),
        ("val", "val2014"),
        ("test", "test2015"),
    }
    for image in images:
        assert image["filename"] == f"COCO_{image['filepath']}_{image['cocoid']:012d}.jpg"
        assert (world / "images" / image["filepath"] / image["filename"]).is_file()
        for sentence in image["sentences"]:
            assert sentence["imgid"] == image["imgid"]
            assert " ".join(sentence["tokens"]) == sentence["raw"].replace(",", "")


@pytest.mark.parametrize(
    ("split", "subset", "count"), [("train", "train2014", 11), ("val", "val2014", 5), ("test", "test2015", 4)]
)
def test_vqa(world: Path, split: str, subset: str, count: int) -> None:
    shown = scenes(split, count, "chalk")
    path = world / f"vqa/v2_OpenEnded_mscoco_{subset}_questions.json"
    data = open_data(path)
    assert (data.kind, len(data)) == ("questions", 5 * len(shown))
    for number, item in enumerate(data):
        scene = shown[number // 5]
        answers = {q.question: q.answer for q in questions(scene)}
        assert len(item.answers) == 10
        assert item.answers[:8] == (answers[item.question],) * 8
        if number % 5 == 0:
            assert close(item.image, render(scene, 32))
    notes = load(world / f"vqa/v2_mscoco_{subset}_annotations.json")["annotations"]
    asked = load(path)["questions"]
    assert [n["question_id"] for n in notes] == [q["question_id"] for q in asked]
    assert len({q["question_id"] for q in asked}) == len(asked)
    for question, note in zip(asked, notes, strict=True):
        assert question["image_id"] == note["image_id"]
        assert question["question"].startswith(note["question_type"])
        assert note["multiple_choice_answer"] == note["answers"][0]["answer"]
        assert [a["answer_id"] for a in note["answers"]] == list(range(1, 11))
        number = note["answers"][0]["answer"].isdigit()
        yes_no = note["answers"][0]["answer"] in ("yes", "no")
        assert note["answer_type"] == ("number" if number else "yes/no" if yes_no else "other")


def test_held_out_scenes_are_in_no_training_part() -> None:
    trained = {s.identity for style in ("plain", "chalk") for s in make_scenes("train", 400, style=style)}
    held = {s.identity for style in ("plain", "chalk") for split in ("val", "test") for s in scenes(split, 200, style)}
    assert not trained & held


def test_the_folder_says_what_it_is(world: Path) -> None:
    about = load(world / "dataset.json")
    assert about.items() >= SMALL.items()
    assert about["command"].startswith("multiflow shapes OUT_DIR --train 22 --val 5 --test 4 --size 32 --seed 2")
    assert about["pictures"] == len(list(world.rglob("*.jpg"))) + 22
    text = (world / "README.md").read_text()
    assert about["command"] in text
    assert "22 training scenes" in text
    assert {path.name for path in world.iterdir()} == {
        *("README.md", "dataset.json", "pretrain", "coco", "coco_plain", "images", "vqa")
    }


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write(tmp_path / "w", **{**SMALL, "size": 16}, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 62) for i in range(1, 63)]


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", **SMALL)
    before = content(tmp_path / "empty")
    with pytest.raises(MultiflowError, match="empty' already holds files; choose a new folder"):
        write(tmp_path / "empty", **{**SMALL, "seed": 9})
    assert content(tmp_path / "empty") == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MultiflowError, match="is a file"):
        write(tmp_path / "file", **SMALL)
    with pytest.raises(MultiflowError, match=r"cannot write Shapes to '.*below'"):
        write(tmp_path / "file" / "below", **SMALL)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    def stop(done: int, total: int) -> None:
        if done == 30:
            raise failure

    expected = MultiflowError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if isinstance(failure, OSError) else None):
        write(tmp_path / "w", **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "plian"}, "unknown style 'plian'; known: plain, chalk; did you mean 'plain'"),
        ({"downstream_style": "oil"}, "unknown style 'oil'"),
        ({"train": 1}, "train=1 was given, a whole number of at least 2 was expected; pass train=2"),
        ({"val": 0}, "val=0 was given"),
        ({"test": -4}, "test=-4 was given"),
        ({"size": 4}, "size=4 was given, a whole number of at least 16"),
        ({"seed": -1}, "seed=-1 was given"),
        ({"shard_size": 0}, "shard_size=0 was given, a whole number from 1 to 10000"),
        ({"shard_size": 20000}, "pass shard_size=10000"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(MultiflowError, match=message):
        write(tmp_path / "w", **options)
    assert list(tmp_path.iterdir()) == []
