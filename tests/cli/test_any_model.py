"""The whole command line on models that people have, with tiny random weights and processors made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families.automatic.processors import load_processor
from multiflow.families.automatic.reading import reader_of
from tests.data.worlds import samples, write_images, write_json, write_shard
from tests.families.automatic import tiny
from tests.families.automatic.processors import SIX

DUAL = ("clip", "siglip2")
FEW = ("clip", "smolvlm")  # of these the whole line in every run of the tests; of the others in make test-all
TEXTS = ("a red square", "two dots", "a line", "nothing")
COLUMNS = ("--image-column", "picture", "--text-column", "alt")
SHORT = ("--max-new-tokens", 3, "--beams", 1)


@pytest.fixture(params=[kind if kind in FEW else pytest.param(kind, marks=pytest.mark.slow) for kind in SIX])
def kind(request):
    return request.param


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images as a table, as conversations, as questions, as a shard, and in two classes."""
    folder, names = tmp_path / "data", [f"{i}.png" for i in range(4)]
    for place in ("table", "talk", "asked"):
        write_images(folder / place, names)
    rows = [f'{name},"{text}"' for name, text in zip(names, TEXTS, strict=True)]
    (folder / "table" / "table.csv").write_text("\n".join(["picture,alt", *rows]))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dot."}]
    write_json(folder / "talk" / "talk.json", [{"image": name, "conversations": turns} for name in names])
    asked = {"question": "how many?", "answer": ["2", "2", "2", "3"]}
    write_json(folder / "asked" / "asked.json", [{"image": name, **asked} for name in names])
    write_shard(folder / "shard" / "0.tar", samples(range(4)))
    write_images(folder / "classes", ["cat/0.png", "cat/1.png", "sea_lion/2.png", "sea_lion/3.png"])
    return folder


def ran(run, *args: Any) -> str:
    done = run(*args)
    assert done.code == 0, done
    return done.out


@pytest.fixture
def mask(kind, vlm, tmp_path) -> Path:
    """Half of the weights of a model, by magnitude."""
    path = tmp_path / "half.safetensors"
    mf.prune(mf.load_model(vlm(kind)), "magnitude", 0.5).masks[0.5].save(path)
    return path


def evaluation(kind, data) -> list[Any]:
    """A task for a model, and how it is evaluated."""
    if kind in DUAL:
        return ["retrieval", "--data", data / "table", *COLUMNS]
    return ["vqa", "--data", data / "asked"]


def test_shown_and_pruned_with_data_in_three_layouts(kind, vlm, data, run):
    assert "stays dense" in ran(run, "show", vlm(kind))
    how = ("--batch-size", 2, "--sparsity", 0.5, "--method", "multiflow")
    for name, columns in (("table/table.csv", COLUMNS), ("talk", ()), ("shard", ())):
        out = ran(run, "prune", vlm(kind), "--data", data / name, *columns, *how, "--out", Path(name).parts[0])
        assert "4 pairs" in out
        assert mf.Masks.load(Path(Path(name).parts[0], "mask-0.5.safetensors")).sparsity == 0.5


@pytest.mark.filterwarnings("default")
def test_layers_that_are_for_nothing_are_shown_and_left_out(vlm, run):
    group = ("--group", r"vision=vision_tower\..*(q_proj|fc1)$")  # the last block among them, which LLaVA passes by
    shown = ran(run, "show", vlm("llava"), *group)
    assert shown.count("never used: nothing of the output depends on it") == 2
    done = run("prune", vlm("llava"), *group, "--method", "magnitude", "--sparsity", 0.5, "--out", "run")
    assert "output depends on 2 of" in done.err
    assert "nothing of the output depends on them: 2 layers" in done.out
    left_out = {"model.vision_tower.encoder.layers.1.self_attn.q_proj", "model.vision_tower.encoder.layers.1.mlp.fc1"}
    assert not left_out & set(mf.Masks.load("run/mask-0.5.safetensors"))
    bare = shutil.copytree(vlm("llava"), "bare", ignore=shutil.ignore_patterns("*processor*.json"))
    assert "lacks the files of its image processor" in ran(run, "show", bare, *group)


def test_applied_and_evaluated(kind, vlm, data, run, mask):
    task, *how = evaluation(kind, data)
    how += ["--split", "all", *(() if kind in DUAL else SHORT[:2])]
    ran(run, "apply", vlm(kind), mask, "--out", "sparse")
    sparse = mf.load_model("sparse")
    assert mf.Masks.load(mask).is_applied(sparse)
    one, other = (
        next(iter(mf.calibration_batches(of, str(data / "talk")))) for of in (sparse, mf.load_model(vlm(kind)))
    )
    assert all(torch.equal(one[name], other[name]) for name in other)
    ran(run, "evaluate", task, "sparse", *how, "--save", "folder", "--dense", vlm(kind))
    ran(run, "evaluate", task, vlm(kind), *how, "--save", "masked", "--mask", mask, "--dense", "folder")
    one, other = (json.loads(Path(name, "evaluation.json").read_text()) for name in ("folder", "masked"))
    assert one["said"] == other["said"]
    assert other["figures"] == one["figures"] | {"loyalty": 100}


def test_fine_tuned_with_its_zeros(kind, vlm, data, run, mask):
    task, *how = evaluation(kind, data)
    trained = ("--train-split", "all", "--val-split", "all", "--steps", 2, "--batch-size", 2, "--lr", 1e-3)
    ran(run, "finetune", task, vlm(kind), "--mask", mask, *how, *trained, "--out", "tuned")
    tuned, before = mf.load_model("tuned/model"), mf.load_model(vlm(kind))
    assert mf.Masks.load(mask).is_applied(tuned)
    assert any(not torch.equal(a, b) for a, b in zip(tuned.parameters(), before.parameters(), strict=True))
    assert len(next(iter(mf.calibration_batches(tuned, str(data / "talk"))))["input_ids"]) == 4


def test_fine_tuned_in_the_trainer(kind, vlm, data, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = mf.load_model(vlm(kind))
    masks = mf.prune(model, "magnitude", 0.5).masks[0.5]
    masks.apply_(model)
    batches = list(mf.calibration_batches(model, str(data / "talk"), batch_size=2))
    if kind in DUAL:
        batches = [{**batch, "return_loss": True} for batch in batches]
    before = [parameter.clone() for parameter in model.parameters()]
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        learning_rate=1e-3,
    )
    trainer = Trainer(model, arguments, train_dataset=batches, data_collator=lambda several: several[0])
    trainer.create_optimizer()
    with mf.keep_sparse(model, masks, trainer.optimizer):
        trainer.train()
    assert masks.is_applied(model)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore")  # transformers leaves files of templates open
def test_a_second_tokenizer_goes_along(vlm, data, run, tmp_path):
    """That of InstructBLIP's Q-Former lies in a folder of its own; so do further chat templates."""
    folder = shutil.copytree(vlm("instructblip"), tmp_path / "model")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("tools")
    mf.prune(mf.load_model(folder), "magnitude", 0.5).masks[0.5].save(tmp_path / "half.safetensors")
    for out, how in (("whole", ()), ("shards", ("--stream",))):
        ran(run, "apply", folder, tmp_path / "half.safetensors", "--out", out, *how)
    ran(run, "export", folder, "--mask", tmp_path / "half.safetensors", "--out", "packed")
    mf.unpack("packed", "unpacked")
    wanted = next(iter(mf.calibration_batches(mf.load_model(folder), str(data / "asked"))))
    for out in ("whole", "shards", "packed", "unpacked"):
        assert (Path(out) / "additional_chat_templates" / "tools.jinja").read_text() == "tools"
        found = next(iter(mf.calibration_batches(mf.load_model(out), str(data / "asked"))))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), out


def test_masks_of_experts_go_into_a_task():
    """A layer that is a part of a parameter is where it was in the model of a task."""
    model = tiny.build("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration")
    masks = mf.prune(model, "magnitude", 0.5).masks[0.5]
    assert any("experts" in name for name in masks)
    built = mf.task_model(model, "vqa", masks)
    assert masks.is_applied(built)
    assert not masks.is_applied(model)


def figures(folder: str) -> dict[str, float]:
    return json.loads(Path(folder, "evaluation.json").read_text())["figures"]


def test_captions_of_a_model_that_writes(vlm, data, run):
    how = ("--data", data / "table", *COLUMNS, "--split", "all", "--metrics", "BLEU-1", *SHORT)
    ran(run, "evaluate", "captioning", vlm("smolvlm"), *how, "--save", "out", "--dense", vlm("smolvlm"))
    assert figures("out")["loyalty"] == 100
    assert len(json.loads(Path("out", "captions.json").read_text())) == 4


def test_zero_shot_classification_is_the_mean_over_sentences(vlm, data, run):
    """Against every sentence and image computed one by one in float64."""
    templates = ("a {}.", "the {} there")
    named = write_json(Path("names.json"), {"cat": "small cat"})
    how = ("--data", data / "classes", "--split", "all", "--templates", *templates, "--class-names", named)
    ran(run, "evaluate", "classification", vlm("clip"), *how, "--save", "out")
    model = mf.load_model(vlm("clip"))
    reader = reader_of(model, load_processor(None, str(vlm("clip")), model))
    model.double()
    classes = []
    for name in ("small cat", "sea lion"):
        vectors = [model.get_text_features(**reader.texts([t.format(name)])).pooler_output[0] for t in templates]
        mean = torch.stack([v / v.norm() for v in vectors]).mean(0)
        classes.append(mean / mean.norm())
    from PIL import Image

    said = []
    for path in sorted((data / "classes").glob("*/*.png")):
        pixels = reader.images([Image.open(path).convert("RGB")])["pixel_values"].double()
        image = model.get_image_features(pixel_values=pixels).pooler_output[0]
        said.append(("cat", "sea_lion")[int(torch.stack([image @ c for c in classes]).argmax())])
    assert [entry["class"] for entry in json.loads(Path("out", "classes.json").read_text())] == said
    right = [name == want for name, want in zip(said, ["cat", "cat", "sea_lion", "sea_lion"], strict=True)]
    assert figures("out")["top-1"] == 100 * sum(right) / 4


def test_retrieval_by_a_dual_encoder_counts_by_hand(vlm, data, run):
    ran(
        run,
        "evaluate",
        "retrieval",
        vlm("siglip"),
        "--data",
        data / "table",
        *COLUMNS,
        "--split",
        "all",
        "--save",
        "out",
    )
    model = mf.load_model(vlm("siglip"))
    batches = mf.calibration_batches(model, str(data / "table"), image_column="picture", text_column="alt")
    (batch,) = batches
    with torch.no_grad():
        logits = model(**batch).logits_per_image
    found = figures("out")
    assert found["TR@1"] == 25 * int((logits.argmax(1) == torch.arange(4)).sum())
    assert found["IR@1"] == 25 * int((logits.argmax(0) == torch.arange(4)).sum())
    assert found["TR@5"] == found["IR@10"] == 100


def test_a_classifier_of_images_is_asked_for_its_own_classes(vlm, data, run):
    write_images(Path("images"), ["circle/0.png", "square/1.png"])
    out = ran(run, "evaluate", "classification", vlm("siglip_classifier"), "--data", "images", "--split", "all")
    assert "top-1" in out


@pytest.mark.parametrize(
    ("task", "kind", "told"),
    [
        ("retrieval", "llava", "takes a model that compares images with texts"),
        ("vqa", "clip", "takes a model that writes texts about images"),
        ("captioning", "siglip2", "can do retrieval and classification"),
    ],
)
def test_a_task_that_a_model_cannot_do(task, kind, told, vlm, data, run):
    source, columns = (data / "asked", ()) if task == "vqa" else (data / "table", COLUMNS)
    how = ("--data", source, *columns)
    assert told in run("evaluate", task, vlm(kind), *how, "--split", "all").error
    assert told in run("finetune", task, vlm(kind), *how, "--out", "out").error


def test_a_template_without_a_place_for_the_class(vlm, data, run):
    how = ("--data", data / "classes", "--split", "all", "--templates", "a photo")
    assert "template 'a photo' has no single {}" in run("evaluate", "classification", vlm("clip"), *how).error


def test_columns_where_there_are_none(vlm, data, run):
    error = run("evaluate", "classification", vlm("clip"), "--data", data / "classes", "--text-column", "alt").error
    assert "--text-column alt was given, but labelled images have no columns" in error


def test_show_data_with_columns(data, run):
    assert "a red square" in ran(run, "show", "data", data / "table", *COLUMNS)
    assert "unknown text column" in run("show", "data", data / "table", "--text-column", "txt").error


def test_loyalty_of_what_does_not_fit(vlm, data, run):
    assert mf.metrics.loyalty(["a", "b "], ["a", "b"]) == 100
    with pytest.raises(MultiflowError, match="1 answers and 2 of the dense model"):
        mf.metrics.loyalty(["a"], ["a", "b"])
    Path("old").mkdir()
    write_json(Path("old", "evaluation.json"), {"figures": {}})
    how = ("--data", data / "asked", "--split", "all", "--dense", "old")
    assert "does not hold what the model said" in run("evaluate", "vqa", vlm("llava"), *how).error
