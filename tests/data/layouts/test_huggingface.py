"""Run with the library `datasets` where it is installed, and with a stand-in of the few calls that are used."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from dataclasses import replace

import huggingface_hub
import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import Batches, BrokenItem, Inputs, Mixed, open_data
from tests.data.hub import Image, StandIn, Table, Value, table
from tests.data.worlds import number_of, png, write_visual_genome

INSTALLED = importlib.util.find_spec("datasets") is not None


@pytest.fixture
def library(monkeypatch):
    stand_in = StandIn()
    module = types.ModuleType("datasets")
    for name in ("Image", "load_from_disk", "load_dataset", "get_dataset_split_names"):
        setattr(module, name, getattr(stand_in, name))
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: asked.append(name))
    asked = stand_in.asked = []
    return stand_in


def saved(library, folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    names = ["dataset_dict.json"] if isinstance(content, dict) else ["dataset_info.json", "state.json"]
    for name in names:
        (folder / name).write_text("{}")
    library.saved[str(folder)] = content
    return folder


def test_a_saved_table(tmp_path, library):
    folder = saved(library, tmp_path / "set", table(range(3), ["zero", " one ", "two"]))
    for source in (folder, f"hf:{folder}"):
        data = open_data(source)
        assert (data.kind, data.layout, len(data)) == ("pairs", "Hugging Face data set", 3)
        assert (data[1].captions, data[1].key, number_of(data[1].image)) == (("one",), "row 1", 1)
    with pytest.raises(MultiflowError, match="one table, has no splits, .*'val'"):
        open_data(folder, split="val")


def test_a_saved_table_of_each_split(tmp_path, library):
    splits = {"train": table([0], ["zero"]), "validation": table([1], [["one", "uno"]])}
    folder = saved(library, tmp_path / "set", splits)
    assert open_data(folder)[0].captions == ("zero",)
    for split in ("val", "validation"):
        assert open_data(folder, split=split)[0].captions == ("one", "uno")
    assert open_data(f"hf:{folder},split=validation")[0].captions == ("one", "uno")
    assert len(open_data(folder, split="train+val")) == 2
    with pytest.raises(MultiflowError, match=r"split 'test' is unknown in .* one of train, validation"):
        open_data(folder, split="test")


def test_a_name_on_the_hub(library):
    library.hub = {"owner/name": {"train": table([0], ["zero"]), "test": table([1, 2], ["one", "two"])}}
    library.hub["lone"] = {"test": table([5], ["five"])}
    library.hub["several/a"] = {"train": table([6], ["six"])}
    assert len(open_data("hf:owner/name")) == 1
    assert len(open_data("hf:owner/name", split="test")) == len(open_data("hf:owner/name,split=test")) == 2
    assert open_data("hf:lone")[0].captions == ("five",)
    assert open_data("hf:several,config=a")[0].captions == ("six",)
    assert set(library.asked) == {"owner/name", "lone", "several"}
    with pytest.raises(MultiflowError, match="'several' .*: Config name .* pick one"):
        open_data("hf:several")


def test_a_name_that_cannot_be_reached(monkeypatch, library):
    def offline(self, name, timeout):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(MultiflowError, match="^no data set 'owner/nmae' on this disk.* Hub"):
        open_data("hf:owner/nmae")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    library.hub = {"owner/cached": {"train": table([0], ["zero"])}}
    assert len(open_data("hf:owner/cached")) == 1
    for path in ("./nowhere", "/nowhere", "a/b/c"):
        with pytest.raises(MultiflowError, match=rf"no data at '{path}': no such file or folder"):
            open_data(f"hf:{path}")


def test_parquet_files(tmp_path, library):
    for number, name in enumerate(("train-0-of-2", "train-1-of-2", "validation-0-of-1")):
        rows = [json.dumps([10 * number + i, f"text {number} {i}"]) for i in range(2)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.parquet").write_text("\n".join(rows))
    for source in (tmp_path, tmp_path / "data", f"hf:{tmp_path}", f"hf:{tmp_path},text=caption"):
        assert [pair.captions[0] for pair in open_data(source)] == ["text 0 0", "text 0 1", "text 1 0", "text 1 1"]
        assert number_of(open_data(source, split="val")[1].image) == 21
    file = tmp_path / "data" / "train-1-of-2.parquet"
    assert len(open_data(file)) == 2
    plain = file.rename(tmp_path / "data" / "some.parquet")
    assert len(open_data(plain)) == 2
    with pytest.raises(MultiflowError, match="has no splits, .*'val'"):
        open_data(plain, split="val")


def two_columns(photo, photo_kind, words, words_kind):
    return Table({"photo": [photo], "words": [words]}, {"photo": photo_kind, "words": words_kind})


def test_columns_that_are_plain_need_no_name(library):
    library.hub = {
        "titles": {"train": replace(table([0], ["zero"], title=["a title"]))},
        "bytes": {"train": two_columns(png(3), Value("binary"), "three", Value("string"))},
        "struct": {"train": two_columns({"bytes": png(4)}, {"bytes": 0, "path": 0}, ["four"], [Value("string")])},
    }
    assert [open_data(f"hf:{name}")[0].captions[0] for name in library.hub] == ["zero", "three", "four"]
    assert [number_of(open_data(f"hf:{name}")[0].image) for name in library.hub] == [0, 3, 4]


def test_columns_that_are_not_plain_are_listed(library):
    two = table([0], ["zero"], text=["other"])
    library.hub = {"two": {"train": two}, "images": {"train": two.select_columns(["image", "id"])}}
    library.hub["pictures"] = {
        "train": replace(
            two_columns(1, Image(), 1, Image()), features={"photo": Image(), "words": Image(), "a": Value("string")}
        )
    }
    message = (
        r"'two' has no plain text column; its columns are image \(Image\), caption \(string\), id \(int64\), text \(s"
    )
    with pytest.raises(MultiflowError, match=message):
        open_data("hf:two")
    assert open_data("hf:two,text=text")[0].captions == ("other",)
    with pytest.raises(MultiflowError, match=r"unknown column of 'two' 'txet'; known: .*did you mean 'text'"):
        open_data("hf:two,text=txet")
    with pytest.raises(MultiflowError, match="column 'id' of 'two' holds no text"):
        open_data("hf:two,text=id")
    with pytest.raises(MultiflowError, match="'images' .* text column; .* hf:images,text=COLUMN"):
        open_data("hf:images")
    with pytest.raises(MultiflowError, match=r"'pictures' has no plain image column"):
        open_data("hf:pictures")


@pytest.mark.parametrize("source", ["hf:a,txt=b", "hf:a,text", "hf:a,text="])
def test_options_that_are_not_understood(source, library):
    with pytest.raises(MultiflowError, match="expected hf:NAME .*image=, text=, config="):
        open_data(source)
    with pytest.raises(MultiflowError, match=r"'hf:,text=a' names no data set"):
        open_data("hf:,text=a")


def test_broken_rows_are_skipped_counted_and_named(library, tokenizer, tmp_path):
    captions = ["picture 0", "picture 1", "  ", None, "picture 4", "picture 5"]
    broken = table([0, b"no image", 2, 3, b"", 5], captions)
    broken.columns["image"][4] = None
    lists = table([0], [["", None]])
    library.hub = {"broken": {"train": broken}, "lists": {"train": lists}}
    batches = Batches(open_data("hf:broken"), Inputs(tokenizer, 16), shuffle=False)
    with pytest.warns(UserWarning, match="4 of 6 items skipped: row 1"):
        (batch,) = batches
    assert len(batch["pixel_values"]) == 2
    reasons = ["not an image file", "its caption is empty", "its caption is empty", "it has no image"]
    assert batches.skipped.skips == tuple((f"row {i}", why) for i, why in enumerate(reasons, 1))
    with pytest.raises(BrokenItem, match="caption is empty"):
        open_data("hf:lists")[0]


def test_rows_and_regions_side_by_side(tmp_path, library):
    library.hub = {"owner/name": {"train": table([0], ["zero"])}}
    write_visual_genome(tmp_path / "vg", count=2)
    data = open_data(f"hf:owner/name,text=caption+{tmp_path}/vg")
    assert isinstance(data, Mixed)
    assert (len(data.pairs), len(data.regions)) == (1, 2)


def test_images_stored_as_paths(tmp_path, library):
    (tmp_path / "a.png").write_bytes(png(9))
    rows = table([0, 1], ["a", "b"])
    rows.columns["image"][0] = {"bytes": None, "path": str(tmp_path / "a.png")}
    rows.columns["image"][1] = {"bytes": None, "path": str(tmp_path / "b.png")}
    library.hub = {"paths": {"train": rows}}
    data = open_data("hf:paths")
    assert number_of(data[0].image) == 9
    with pytest.raises(BrokenItem, match="No such file"):
        data[1]


def test_a_folder_without_a_data_set(tmp_path, library):
    with pytest.raises(MultiflowError, match="expected .* save_to_disk"):
        open_data(f"hf:{tmp_path}")
    (tmp_path / "x.parquet").write_text("not parquet")
    with pytest.raises(MultiflowError, match=r"the data set '.*' cannot be read: "):
        open_data(tmp_path)
    library.hub = {"empty": {"train": table([], [])}}
    with pytest.raises(MultiflowError, match="'empty' holds no rows"):
        open_data("hf:empty")


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in ("hf:owner/name", f"hf:{saved(StandIn(), tmp_path, None)}"):
        with pytest.raises(MultiflowError, match=r"need the library 'datasets', .*pip install -e '\.\[data\]'"):
            open_data(source)


@pytest.mark.skipif(not INSTALLED, reason="datasets is not installed")
@pytest.mark.parametrize("form", ["saved", "splits", "parquet"])
def test_with_the_library_itself(tmp_path, form, monkeypatch, tokenizer):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    rows = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "caption": ["picture 0", "picture 1", "x"]}
    rows["image"][2]["bytes"] = b"no image"
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    made = datasets.Dataset.from_dict(rows, features=features)
    folder = tmp_path / "set"
    if form == "parquet":
        folder.mkdir()
        made.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    else:
        (datasets.DatasetDict(train=made) if form == "splits" else made).save_to_disk(str(folder))
    data = open_data(folder)
    assert [data[i].captions for i in range(2)] == [("picture 0",), ("picture 1",)]
    assert [number_of(data[i].image) for i in range(2)] == [0, 1]
    batches = Batches(data, Inputs(tokenizer, 16), workers=1)
    with pytest.warns(UserWarning, match="1 of 3"):
        assert [len(batch["pixel_values"]) for batch in batches] == [2]
    assert batches.skipped.skips == (("row 2", "not an image file"),)


@pytest.mark.skipif(not INSTALLED, reason="needs the library datasets")
@pytest.mark.parametrize(
    ("columns", "kind", "texts"),
    [
        ({"question": "what?", "answers": ["dog", "a dog"]}, "questions", ("what?", ("dog", "a dog"))),
        ({"question": "what?", "answers": [{"answer": "dog", "confidence": "yes"}]}, "questions", ("what?", ("dog",))),
        ({"question": "what?", "answer": "dog", "id": 7}, "questions", ("what?", ("dog",))),
        ({"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "dog"}]}, "pairs", None),
        (
            {"conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "dog"}]},
            "pairs",
            None,
        ),
        ({"texts": [{"user": "what?", "assistant": "dog", "source": "x"}]}, "pairs", None),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_questions_and_conversations_with_embedded_images(tmp_path, columns, kind, texts, several):
    import datasets

    image = {"bytes": png(3), "path": None}
    name, held = ("images", [image]) if several else ("image", image)
    feature = datasets.List(datasets.Image()) if several else datasets.Image()
    made = datasets.Dataset.from_list([{name: held, **columns}]).cast_column(name, feature)
    made.save_to_disk(tmp_path / "set")
    data = open_data(tmp_path / "set")
    assert (data.kind, number_of(data[0].image)) == (kind, 3)
    if texts is None:
        assert (data[0].prompts, data[0].captions) == (("what?",), ("dog",))
    else:
        assert (data[0].question, data[0].answers) == texts
