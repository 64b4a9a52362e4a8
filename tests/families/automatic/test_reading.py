"""Models of transformers read data through their own processor: batches, labels, and what is missing."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress

import pytest
import torch
import transformers
from PIL import Image

import multiflow as mf
from multiflow.data.examples import Sample
from multiflow.families.automatic.processors import load_processor
from multiflow.families.automatic.reading import reader_of
from tests.data.worlds import picture, samples, write_images, write_json, write_karpathy, write_shard
from tests.families.automatic.processors import OTHERS, SIX, TORCHVISION

TEXTS = ("a red square", "end", "two blue dots on a green field")  # one that is part of the end of a turn
PAIRS = ("clip", "siglip", "siglip2")


@pytest.fixture(params=(*SIX, *OTHERS))
def kind(request):
    return request.param


@pytest.fixture
def table(tmp_path):
    names = [f"{i}.png" for i in range(3)]
    write_images(tmp_path, names)
    rows = [f"{name}\t{text}" for name, text in zip(names, TEXTS, strict=True)]
    (tmp_path / "table.tsv").write_text("\n".join(["picture\talt", *rows]))
    return tmp_path / "table.tsv"


def opened(vlm, kind, data, **options):
    model = mf.load_model(vlm(kind))
    return model, mf.calibration_batches(model, str(data), **options)


COLUMNS = {"image_column": "picture", "text_column": "alt"}


def test_batches_run_through_the_model_and_their_labels_are_the_texts(vlm, kind, table):
    model, batches = opened(vlm, kind, table, batch_size=3, **COLUMNS)
    (batch,) = batches
    assert (batches.seen, batches.skipped.count) == (3, 0)
    out = model(**batch)
    if kind in PAIRS:
        assert "labels" not in batch
        return
    assert torch.isfinite(out.loss)
    if kind == "vilt":  # whose first answer is one of the texts
        assert sorted(batch["labels"].tolist()) == [[0, 0], [0, 0], [1, 0]]
        return
    tokenizer = load_processor(None, str(vlm(kind)), model).tokenizer
    said = [tokenizer.decode(row[row != -100], skip_special_tokens=True).strip() for row in batch["labels"]]
    assert sorted(said) == sorted(TEXTS)
    if batch["labels"].shape == batch.get("input_ids", batch["labels"][:0]).shape:
        counted = batch["labels"] != -100
        assert (batch["labels"] == batch["input_ids"])[counted].all()
        assert not counted[batch["attention_mask"] == 0].any()
        ends = batch["labels"][:, -1] if tokenizer.padding_side == "left" else None
        assert ends is None or (ends != -100).all()


def test_labels_end_where_the_text_ends_and_a_question_is_asked_without_its_answer(vlm, table):
    model, batches = opened(vlm, "vit_gpt2", table, **COLUMNS)
    (batch,) = batches
    assert all(row[row != -100][-1] == 2 for row in batch["labels"])
    write_json(table.parent / "q" / "q.json", [{"image": "0.png", "question": "how many?", "answer": "2"}])
    write_images(table.parent / "q", ["0.png"])
    model, batches = opened(vlm, "instructblip", table.parent / "q")
    (batch,) = batches
    tokenizer = load_processor(None, str(vlm("instructblip")), model).qformer_tokenizer
    assert tokenizer.decode(batch["qformer_input_ids"][0]) == "<s>how many?</s>"


def test_batches_are_the_same_again_and_in_workers(vlm, table):
    options = {"batch_size": 2, "seed": 3, **COLUMNS}
    _, batches = opened(vlm, "smolvlm", table, **options)
    once, again = list(batches), list(batches)
    _, ahead = opened(vlm, "smolvlm", table, workers=1, **options)
    for other in (again, list(ahead)):
        assert all(torch.equal(a[name], b[name]) for a, b in zip(once, other, strict=True) for name in a)


def asked_and_said(vlm, kind, data, **options):
    """What the prompt of the only example is, and what is said."""
    model, batches = opened(vlm, kind, data, **options)
    (batch,) = batches
    tokenizer = load_processor(None, str(vlm(kind)), model).tokenizer
    words = batch["labels"][0] != -100
    return tuple(tokenizer.decode(batch["input_ids"][0][part]) for part in (~words, words))


def conversation(*turns):
    speakers = ("human", "gpt") * len(turns)
    return [
        {"image": "0.png", "conversations": [{"from": s, "value": t} for s, t in zip(speakers, turns, strict=False)]}
    ]


def test_what_the_data_ask_is_the_prompt(vlm, tmp_path):
    write_images(tmp_path, ["0.png"])
    talk = write_json(tmp_path / "talk.json", conversation("<image>\nWhat is it?", "A dot."))
    asked, said = asked_and_said(vlm, "llava", talk)
    assert asked.endswith("<image>\nWhat is it? ASSISTANT: ")
    assert said == "A dot.</s>"
    listed = write_json(tmp_path / "q.json", [{"image": "0.png", "question": "how many?", "answer": ["2", "2"]}])
    asked, said = asked_and_said(vlm, "qwen2_5_vl", listed)
    assert "how many?<|im_end|>" in asked
    assert said == "2<|im_end|>\n"


def test_where_the_data_ask_nothing_the_user_does(vlm, tmp_path):
    write_images(tmp_path, ["0.png"])
    (tmp_path / "0.txt").write_text("a dot")
    assert "sentence." in asked_and_said(vlm, "smolvlm", tmp_path)[0]
    assert "Say it.<|im_end|>" in asked_and_said(vlm, "smolvlm", tmp_path, prompt="Say it.")[0]
    assert "<s>caption en\n" in asked_and_said(vlm, "paligemma", tmp_path)[0]


@pytest.mark.parametrize("kind", ["clip", "llava"])
def test_every_source_works(vlm, kind, tmp_path):
    """Shards, Karpathy's JSON, regions, an imagefolder, JSON lines, texts beside images, questions, labelled images."""
    sources = {"shard": 4, "karpathy": 2, "regions": 2, "folder": 2, "lines": 2, "beside": 1, "asked": 1, "classes": 2}
    write_shard(tmp_path / "shard" / "0.tar", samples(range(4)))
    write_karpathy(tmp_path / "karpathy", ["train", "train"])
    write_images(tmp_path / "regions", ["0.png", "1.png"])
    part = {"bb": [0, 0, 4, 5], "caption": "a part"}
    write_json(tmp_path / "regions" / "r.json", [{"image": f"{i}.png", "elems": [part]} for i in range(2)])
    for name, file in (("folder", "metadata.jsonl"), ("lines", "any.jsonl")):
        write_images(tmp_path / name, ["0.png", "1.png"])
        rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(2)]
        (tmp_path / name / file).write_text("\n".join(map(json.dumps, rows)))
    write_images(tmp_path / "beside", ["0.png"])
    (tmp_path / "beside" / "0.txt").write_text("a dot")
    write_images(tmp_path / "asked", ["0.png"])
    write_json(tmp_path / "asked" / "q.json", [{"image": "0.png", "question": "how many?", "answer": "2"}])
    write_images(tmp_path / "classes", ["dots/0.png", "lines/1.png"])
    for name, count in sources.items():
        model, batches = opened(vlm, kind, tmp_path / name)
        (batch,) = batches
        assert len(batch["input_ids"]) == count, name
        model(**batch)
    _, joined = opened(vlm, kind, f"{tmp_path / 'shard'}+{tmp_path / 'regions'}", batch_size=2)
    assert sum(len(batch["input_ids"]) for batch in joined) == 6


def test_labelled_images_are_named_in_a_sentence_for_a_dual_encoder(vlm, tmp_path):
    write_images(tmp_path, ["dots/0.png"])
    model, batches = opened(vlm, "clip", tmp_path)
    words = load_processor(None, str(vlm("clip")), model).tokenizer.decode(next(iter(batches))["input_ids"][0])
    assert "a photo of a dots." in words


def test_a_classifier_of_images_gets_images_and_classes(vlm, tmp_path):
    write_images(tmp_path, ["square/0.png", "circle/1.png", "circle/2.png"])
    model, batches = opened(vlm, "siglip_classifier", tmp_path)
    (batch,) = batches
    assert sorted(batch["labels"].tolist()) == [0, 0, 1]
    assert set(batch) == {"pixel_values", "labels"}
    assert torch.isfinite(model(**batch).loss)


def test_a_broken_image_is_skipped_and_told(vlm, table):
    (table.parent / "1.png").write_bytes(b"no image")
    _, batches = opened(vlm, "clip", table, **COLUMNS)
    with pytest.warns(UserWarning, match=r"1 of 3 items skipped: 1.png"):
        (batch,) = batches
    assert len(batch["input_ids"]) == 2
    assert batches.skipped.names == ("1.png",)


def test_prompts_for_generation_are_padded_on_their_left_and_taken_off_again(vlm):
    model = mf.load_model(vlm("qwen2_5_vl"))
    reader = reader_of(model, load_processor(None, str(vlm("qwen2_5_vl")), model))
    images = [Image.fromarray(picture(i, 32, 32)) for i in range(2)]
    batch = reader.questions(images, ["What is in it, and how many?", "What?"])
    assert batch["attention_mask"][:, -1].all()
    assert not batch["attention_mask"][1, 0]
    said = reader.tokenizer("a cat", return_tensors="pt")["input_ids"].expand(2, -1)
    assert reader.written(batch, torch.cat([batch["input_ids"], said], 1)) == ["a cat"] * 2
    assert reader.written(batch, said) == ["a cat"] * 2


def test_a_template_for_texts_alone_gets_the_image_in_the_text(vlm):
    model = mf.load_model(vlm("llava"))
    processor = load_processor(None, str(vlm("llava")), model)
    processor.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    batch = reader_of(model, processor).examples([Sample(Image.fromarray(picture(1, 32, 32)), "a dot", "What?")])
    assert "<image>\nWhat?\nassistant: a dot" in processor.tokenizer.decode(batch["input_ids"][0])
    assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize(
    ("kind", "gone", "told"),
    [
        ("clip", ["preprocessor_config.json"], "its image processor (preprocessor_config.json or"),
        ("llava", ["tokenizer.json"], "its tokenizer (tokenizer.json or"),
        ("smolvlm", ["tokenizer.json", "preprocessor_config.json"], "lacks the files of its image processor"),
    ],
)
def test_a_folder_without_the_files_of_its_processor(vlm, kind, gone, told, table, tmp_path):
    folder = shutil.copytree(vlm(kind), tmp_path / "model")
    for name in gone:
        (folder / name).unlink()
    model = mf.load_model(folder)
    with pytest.raises(mf.MultiflowError) as refused:
        mf.calibration_batches(model, str(table), **COLUMNS)
    assert told in str(refused.value)
    assert "processor=DIR_OR_ID" in str(refused.value)
    (batch,) = mf.calibration_batches(model, str(table), processor=str(vlm(kind)), **COLUMNS)
    assert len(batch["input_ids"]) == 3
    made = load_processor(None, str(vlm(kind)), model)
    (same,) = mf.calibration_batches(model, str(table), processor=made, **COLUMNS)
    assert all(torch.equal(batch[name], same[name]) for name in batch)


def test_a_package_that_is_missing_is_named(vlm, table, monkeypatch):
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(mf.MultiflowError, match=r"needs a package that is not installed: .*num2words"):
        opened(vlm, "smolvlm", table, **COLUMNS)


@pytest.mark.skipif(TORCHVISION, reason="nothing is missing where torchvision is installed")
def test_a_processor_class_whose_package_is_missing_is_one_sentence(vlm, table):
    with pytest.raises(mf.MultiflowError, match=r"needs a package that is not installed: PixtralProcessor"):
        opened(vlm, "pixtral", table, **COLUMNS)


def test_a_processor_of_another_model(vlm, table):
    with pytest.raises(mf.MultiflowError, match="which has no image processor"):
        opened(vlm, "llava", table, processor=transformers.AutoTokenizer.from_pretrained(vlm("clip")), **COLUMNS)
    model = mf.load_model(vlm("clip"))
    (batch,) = mf.calibration_batches(model, str(table), processor=vlm("siglip"), **COLUMNS)
    assert len(batch["input_ids"]) == 3
    with pytest.raises(mf.MultiflowError, match="'nowhere/at-all' is no folder here"):
        mf.calibration_batches(model, str(table), processor="nowhere/at-all", **COLUMNS)


def test_a_known_family_takes_no_processor(tiny, world):
    with pytest.raises(mf.MultiflowError, match="processor= was given, .*'xvlm'"):
        mf.calibration_batches(mf.load_model(tiny), str(world / "coco"), processor="any")


def test_questions_are_captions_for_a_model_of_pairs(tiny, world):
    (batch,) = mf.calibration_batches(mf.load_model(tiny), str(world / "vqa"), batch_size=4, batches=1)
    assert len(batch["input_ids"]) == 4


DAMAGE = {
    "preprocessor_config.json": [
        '{"size": {"height": 1000000, "width": 1000000}}',
        '{"size": 5e9}',
        "[]",
        '{"a":' * 900,
    ],
    "tokenizer.json": ["{}", '{"model": {"type": "BPE", "vocab": 5}}', "\x00", None],
    "tokenizer_config.json": ['{"model_max_length": "long"}', '{"tokenizer_class": 5}', '{"added_tokens_decoder": 5}'],
    "config.json": ["{", '{"model_type": 5}'],
}


@pytest.mark.parametrize("file", DAMAGE)
def test_damaged_files_of_a_processor_are_one_sentence_or_none(vlm, file, tmp_path, recwarn):
    """Some damage leaves a processor that works: then a batch is made."""
    model = mf.load_model(vlm("clip"))
    for text in DAMAGE[file]:
        folder = tmp_path / "damaged"
        shutil.copytree(vlm("clip"), folder)
        if text is None:
            (folder / file).unlink()
            os.mkfifo(folder / file)  # nothing is waited for
        else:
            (folder / file).write_text(text)
        with suppress(mf.MultiflowError):
            reader = reader_of(model, load_processor(None, str(folder), model))
            batch = reader.examples([Sample(Image.new("RGB", (8, 8)), "a cat")])
            assert batch["pixel_values"].isfinite().all()
        shutil.rmtree(folder)
