"""Every layout of data: opened, and made into batches as calibration does."""

from __future__ import annotations

import json
import pickle
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from multiflow.data import Batches, Dataset, Inputs, Mixed, answer_list, build_word_tokenizer, open_data
from multiflow.data.batches import ImageBatches
from multiflow.data.dataset import BrokenItem
from multiflow.data.source import open_images, open_labelled
from tests.data.worlds import png, samples, write_images, write_json, write_karpathy, write_shard, write_visual_genome
from tests.robust.fuzz import Target

PICTURES = ["a.png", "b.png", "c.png"]


@cache
def _inputs() -> Inputs:
    return Inputs(build_word_tokenizer(["picture caption part a b c one two 0 1 2"]), 16, 8)


def read(folder: Path) -> Any:
    """Open a folder as data, and return how much of everything it holds."""
    data = open_data(folder, split="all" if folder.name.endswith("karpathy") else None)
    texts = [known.texts for part in _parts(data) for i in range(len(part)) if (known := part.known(i))]
    str(data), [str(skip) for skip in data.skipped]
    if isinstance(data, Dataset) and data.kind == "questions":
        for index in range(len(data)):
            try:
                data[index].image.load()
            except BrokenItem:
                continue
            except Exception:  # left to `decode`, which the tasks call
                ImageBatches(data, 16)._make(0)
        return len(answer_list(data))
    batches = Batches(data, _inputs(), batch_size=4)
    return [tuple(batch["pixel_values"].shape) for batch in batches], len(texts), str(batches.skipped)


def _parts(data: Any) -> tuple[Any, ...]:
    return (data.pairs, data.regions) if isinstance(data, Mixed) else (data,)


def read_labelled(folder: Path) -> Any:
    """Open labelled images, and make batches of them."""
    data = open_labelled(folder, "train")
    labels = {name: number for number, name in enumerate(data.classes)}
    return [batch["labels"].tolist() for batch in ImageBatches(data, 16, classes=labels)]


def read_images(folder: Path) -> Any:
    """Open a folder of images alone."""
    data, _ = open_images(str(folder))
    return [tuple(batch["pixel_values"].shape) for batch in ImageBatches(data, 16)]


def read_speech(folder: Path) -> Any:
    """Open a folder of speech, and hear every clip of it at another rate."""
    data = open_data(folder)
    str(data), [str(skip) for skip in data.skipped]
    lengths = []
    for index in range(len(data)):
        try:
            lengths.append(len(data[index].sound.at(16000)))
        except BrokenItem as error:
            str(error)
    return lengths


def _said(folder: Path) -> None:
    from tests.families.automatic.speech import write_tones

    write_tones(folder, {"a.wav": "one", "b.flac": "two, three", "c.wav": "four"}, subtype="PCM_16")


def _said_beside(folder: Path) -> None:
    _said(folder)
    (folder / "metadata.csv").unlink()
    for name in "abc":
        (folder / f"{name}.txt").write_text("one two\n")


def _tones_in(folder: Path, *names: str) -> None:
    from tests.families.automatic.speech import write_tones

    write_tones(folder, dict.fromkeys(names, "x"), subtype="PCM_16")
    (folder / "metadata.csv").unlink()


def _librispeech(folder: Path) -> None:
    _tones_in(folder / "84" / "121", "84-121-0000.flac", "84-121-0001.flac")
    (folder / "84" / "121" / "84-121.trans.txt").write_text("84-121-0000 ONE TWO\n84-121-0001 THREE\n")


def _common_voice(folder: Path) -> None:
    _tones_in(folder / "clips", "a.wav", "b.flac")
    rows = "client_id\tpath\tsentence\tup\n1\ta.wav\tOne, two\t3\n2\tb.flac\tThree\t4\n"
    (folder / "train.tsv").write_text(rows)


def _ljspeech(folder: Path) -> None:
    _tones_in(folder / "wavs", "LJ-1.wav", "LJ-2.wav")
    (folder / "metadata.csv").write_text("LJ-1|One, 2|one, two\nLJ-2|Three|three\n")


def _kaldi(folder: Path) -> None:
    _tones_in(folder / "wav", "a.wav", "b.flac")
    (folder / "wav.scp").write_text("u1 wav/a.wav\nu2 wav/b.flac\n")
    (folder / "text").write_text("u1 one two\nu2 three\n")


def _pictures(folder: Path) -> None:
    write_images(folder, PICTURES)


def _shards(folder: Path) -> None:
    write_shard(folder / "0.tar", samples(range(3)))
    write_shard(folder / "1.tar", {k: v for k, v in samples(range(3, 5)).items() if not k.endswith(".txt")})


def _list(folder: Path) -> None:
    _pictures(folder)
    write_json(folder / "list.json", [{"image": name, "caption": ["one", f"picture {name}"]} for name in PICTURES])


def _lines(folder: Path) -> None:
    _pictures(folder)
    rows = [{"file_name": name, "text": f"picture {name}", "more": {"a": 1}} for name in PICTURES]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _conversations(folder: Path) -> None:
    _pictures(folder)
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a picture"}]
    write_json(folder / "llava.json", [{"id": name, "image": name, "conversations": turns} for name in PICTURES])


def _messages(folder: Path) -> None:
    _pictures(folder)
    asked = [{"type": "image"}, {"type": "text", "text": "what?"}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "a picture"}]
    write_json(folder / "chat.json", [{"images": [name], "messages": turns} for name in PICTURES])


def _asked(folder: Path) -> None:
    _pictures(folder)
    rows = "".join(f'{name},"what, {name}?",two\n' for name in PICTURES)
    (folder / "asked.csv").write_text(f"image,question,answer\n{rows}")


def _mapping(folder: Path) -> None:
    _pictures(folder)
    write_json(folder / "captions.json", {name: ["one", "two"] for name in PICTURES})


def _table(folder: Path) -> None:
    _pictures(folder)
    rows = "".join(f'{name},"one, {name}",5\n' for name in PICTURES)
    (folder / "captions.csv").write_text(f"image,caption,width\n{rows}")


def _captions_txt(folder: Path) -> None:
    _pictures(folder)
    (folder / "captions.txt").write_text("".join(f"{name}#{i}\tone, {i}\n" for name in PICTURES for i in range(2)))


def _beside(folder: Path) -> None:
    _pictures(folder)
    for name in PICTURES:
        (folder / name).with_suffix(".txt").write_text("one\ntwo\n")


def _genome(folder: Path) -> None:
    write_visual_genome(folder, count=3)
    write_json(folder / "image_data.json", [{"image_id": i, "width": 40, "height": 20} for i in range(3)])


def _regions(folder: Path) -> None:
    _pictures(folder)
    elements = [{"bb": [1, 2, 5, 4], "caption": "a", "attributes": ["b"]}, {"bb": [0, 0, 9, 9], "caption": ["c"]}]
    write_json(folder / "regions.json", [{"image": name, "caption": "one", "elems": elements} for name in PICTURES])


def _vqa(folder: Path) -> None:
    write_images(folder / "images" / "train2014", [f"COCO_train2014_{i:012d}.jpg" for i in range(2)])
    asked = [{"image_id": i, "question_id": 10 + i, "question": f"what is {i}?"} for i in range(2)]
    answers = [{"question_id": 10 + i, "answers": [{"answer": "a"}, {"answer": "b"}]} for i in range(2)]
    questions = {"data_subtype": "train2014", "questions": asked}
    write_json(folder / "v2_OpenEnded_mscoco_train2014_questions.json", questions)
    write_json(folder / "v2_mscoco_train2014_annotations.json", {"annotations": answers})


def _questions(folder: Path) -> None:
    _pictures(folder)
    asked = [
        {"image": n, "question": "what?", "answer": ["a", "b"], "dataset": "vqa", "question_id": 4} for n in PICTURES
    ]
    write_json(folder / "vqa_train.json", asked)
    write_json(folder / "answer_list.json", ["a", "b"])


def _classes(folder: Path) -> None:
    for name in ("cat", "dog"):
        write_images(folder / "train" / name, PICTURES[:2])


def _cifar(folder: Path) -> None:
    folder.mkdir()
    for name in ("train", "test"):
        content = {b"data": np.zeros((3, 3072), np.uint8), b"fine_labels": [0, 1, 0]}
        (folder / name).write_bytes(pickle.dumps(content, 4))
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"a", b"b"]}, 4))


def _flowers(folder: Path) -> None:
    from scipy.io import savemat

    write_images(folder / "jpg", [f"image_{i:05}.jpg" for i in range(1, 4)])
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 1]])}, do_compression=True)
    savemat(folder / "setid.mat", {"trnid": [[1, 3]], "valid": [[2]], "tstid": [[2]]})


def _columns() -> dict[str, list[Any]]:
    pictures = [{"bytes": png(seed), "path": None} for seed in range(3)]
    return {"image": pictures, "caption": ["one", "two", "three"], "n": [1, 2, 3]}


def _parquet(folder: Path) -> None:
    import pyarrow.parquet

    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table(_columns()), folder / "train-00000-of-00001.parquet")


def _saved(folder: Path) -> None:
    import datasets

    datasets.Dataset.from_dict(_columns()).cast_column("image", datasets.Image()).save_to_disk(folder)


def read_with_library(folder: Path) -> Any:
    """Open a folder through the library `datasets`, whose cache goes with what is read."""
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, Path(cache)
        try:
            return read(folder)
        finally:
            datasets.config.HF_DATASETS_CACHE = before


def _karpathy(folder: Path) -> None:
    write_karpathy(folder, ["train", "val", "test"])


TARGETS = [
    Target("shards", _shards, read, weight=3),
    Target("karpathy", _karpathy, read),
    Target("list", _list, read),
    Target("lines", _lines, read),
    Target("conversations", _conversations, read),
    Target("messages", _messages, read),
    Target("question-table", _asked, read),
    Target("mapping", _mapping, read),
    Target("table", _table, read),
    Target("captions-txt", _captions_txt, read),
    Target("text-beside", _beside, read),
    Target("visual-genome", _genome, read),
    Target("region-list", _regions, read),
    Target("vqa", _vqa, read),
    Target("question-list", _questions, read),
    Target("classes", _classes, read_labelled),
    Target("cifar", _cifar, read_labelled),
    Target("image-folder", _pictures, read_images),
    *(
        [
            Target("speech", _said, read_speech),
            Target("speech-beside", _said_beside, read_speech),
            Target("librispeech", _librispeech, read_speech),
            Target("common-voice", _common_voice, read_speech),
            Target("ljspeech", _ljspeech, read_speech),
            Target("kaldi", _kaldi, read_speech),
        ]
        if find_spec("soundfile") and find_spec("soxr")
        else []
    ),
    *([Target("flowers-102", _flowers, read_labelled)] if find_spec("scipy") else []),
    *(
        [
            Target("parquet", _parquet, read_with_library, weight=0.1),
            Target("saved", _saved, read_with_library, weight=0.3),
        ]
        if find_spec("datasets")
        else []
    ),
]
