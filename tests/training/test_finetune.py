from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import multiflow as mf
from multiflow.families.presets import Preset
from multiflow.tasks.task import TASKS
from multiflow.training.checkpoint import checkpoints, load_checkpoint
from multiflow.training.finetune import Beside, FinetuneSettings, build, finetune, new_parameters
from multiflow.training.loop import TrainSettings
from multiflow.training.optimizer import make_optimizer
from multiflow.training.settings import adjust, plan_of
from multiflow.training.tracking import read_metrics
from multiflow.worlds.shapes import write
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests.small import every
from tests.tiny import FAMILIES

ROOT = Path(__file__).parents[2]
STEPS = 32


def made(family: str):
    """A small model with random weights, its tokenizer, and masks of it."""
    tokenizer = shapes_tokenizer(family)
    model = shapes_model(FAMILIES[family], len(tokenizer)).eval()
    return model, Beside(tokenizer), mf.prune(model, "random", 0.5).masks[0.5]


def settings_for(data: object, **changes: object) -> FinetuneSettings:
    plain = FinetuneSettings(
        str(data), preset="shapes", steps=STEPS, batch_size=8, evaluate_every=10, checkpoint_every=3, precision="fp32"
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "shapes", train=16, val=8, test=4, size=24)


@pytest.fixture(scope="module")
def sparse(shapes, tmp_path_factory):
    """BLIP, whose momentum copies follow, fine-tuned for retrieval: folder, figures, progress."""
    out, seen = tmp_path_factory.mktemp("sparse") / "run", []
    model, beside, masks = made("blip")
    figures = finetune("retrieval", model, masks, settings_for(shapes / "coco"), out, beside, progress=seen.append)
    return out, figures, seen


def test_the_best_checkpoint_is_an_ordinary_folder(sparse):
    out, figures, seen = sparse
    stored = mf.load_model(out / "model")
    masks = mf.Masks.load(out / "mask.safetensors")
    for name, mask in masks.items():
        assert not stored.get_submodule(name).weight[~mask].any()
    assert masks.sparsity == pytest.approx(0.5, abs=0.01)
    assert {"tokenizer.json", "config.json", "validation.json"} <= {path.name for path in (out / "model").iterdir()}
    assert json.loads((out / "figures.json").read_text()) == figures
    looked = [r for r in read_metrics(out / "train") if "val/mean recall" in r]
    assert [r["step"] for r in looked] == [10, 20, 30, 32]
    best = max(looked, key=lambda r: r["val/mean recall"])
    assert (figures["step"], figures["mean recall"]) == (best["step"], best["val/mean recall"])
    assert {p.stage for p in seen} == {"train", "evaluate"}


def test_zeros_stay_in_weights_optimizer_and_momentum_copies_and_the_rest_trains(sparse):
    model, _, masks = made("blip")
    built, places = mf.build_task_model(model, "retrieval", queue_size=1024)
    before = {name: value.clone() for name, value in built.state_dict().items()}
    optimizer = make_optimizer(built, TrainSettings(1))
    load_checkpoint(checkpoints(sparse[0] / "train")[-1], built, optimizer)
    for name, mask in masks.items():
        for path in places[name]:
            weight = built.get_submodule(path).weight
            assert not weight[~mask].any(), path
            assert (weight != before[f"{path}.weight"])[mask].float().mean() > 0.9, path
    for name, mask in mf.task_masks(masks, places, built).items():
        state = optimizer.state[built.get_submodule(name).weight]
        assert not state["exp_avg"][~mask].any()
        assert not state["exp_avg_sq"][~mask].any()
        assert state["exp_avg_sq"][mask].count_nonzero() > 0.9 * int(mask.sum())
    assert any(path.startswith("vision_model_m.") for paths in places.values() for path in paths)


KILLED = """
import sys
from tests.training.test_finetune import finetune, made, settings_for
model, beside, masks = made("blip")
finetune("retrieval", model, masks, settings_for(sys.argv[1]), sys.argv[2], beside, resume=True,
         progress=lambda p: print(p.stage, p.step, flush=True))
"""


def test_a_run_killed_three_times_at_a_random_moment_ends_with_the_same_weights(sparse, shapes, tmp_path):
    out, chance = tmp_path / "run", random.Random()
    command = [sys.executable, "-c", KILLED, str(shapes / "coco"), str(out)]
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(chance.randint(1, 9)):  # steps and evaluated batches: fewer in all than the run has
            assert process.stdout.readline()
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    model, beside, masks = made("blip")
    figures = finetune("retrieval", model, masks, settings_for(shapes / "coco"), out, beside, resume=True)
    assert figures == sparse[1]
    for name in ("model", f"train/step-{STEPS:08d}"):
        ours, theirs = (load_file(run / name / "model.safetensors") for run in (out, sparse[0]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("task", ["captioning", "vqa"])
def test_dense_fine_tuning_of_the_other_tasks(shapes, tmp_path, task):
    model, beside, _ = made("xvlm")
    data = shapes / ("vqa" if task == "vqa" else "coco")
    settings = settings_for(data, steps=2, limit=6, accumulate=2, precision="bf16", optimizer="sgd", lr=1e-3)
    with pytest.warns(UserWarning, match="answers in .* to choose from") if task == "vqa" else nullcontext():
        figures = finetune(task, model, None, settings, tmp_path / "run", beside)
    assert figures["step"] in (1, 2)
    assert not (tmp_path / "run" / "mask.safetensors").exists()
    stored = mf.load_model(tmp_path / "run" / "model")
    assert type(stored) is type(mf.task_model(model, task))
    if task == "captioning":
        assert stored.config.eos_token_id == beside.tokenizer.sep_token_id


def test_masks_of_a_changed_decoder_and_new_parameters(shapes):
    model, beside, masks = made("xvlm")
    data = TASKS["vqa"].open(shapes / "vqa", "train", limit=4)
    preset = Preset(1e-4, 8, image_size=None)
    kind = TASKS["vqa"]
    for mask_decoder in (True, False):
        settings = settings_for(shapes, mask_decoder=mask_decoder)
        _, moved, copies, new = build(kind, model, masks, data, preset, settings, beside)
        assert any(name.startswith("text_decoder.") for name in moved) == mask_decoder
        assert copies == {}
        assert new == set()


def test_only_what_starts_from_nothing_is_new():
    vit = mf.load_model("vit-digits")
    built, _ = mf.build_task_model(vit, "classification", classes=3)
    assert new_parameters(built, vit) == {"classifier.weight", "classifier.bias"}
    bigger, _ = mf.build_task_model(vit, "classification", classes=10, image_size=32)
    assert new_parameters(bigger, vit) == {"classifier.weight", "classifier.bias"}  # of the same shape as before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 6, "accumulate": 4}, r"batch_size 6 cannot be cut into 4 equal parts \(1 processes"),
        ({"steps": 3, "epochs": 2}, "epochs 2 and steps 3 were given; give one of them"),
        ({"batch_size": 0}, "batch_size 0 was given; expected at least 1"),
        ({"preset": "papers"}, "unknown preset 'papers'; known: paper, shapes; did you mean 'paper'"),
        ({"limit": 0}, "limit 0 was given"),
        (
            {"mask_decoder": False},
            r"mask_decoder=False \(--no-mask-decoder\) was given, and for task 'retrieval'",
        ),
        ({"train_split": "nix"}, r"split 'nix' is unknown in .*; give train_split= \(--train-split\), one of"),
        ({"val_split": "nix"}, r"split 'nix' is unknown in .*; give val_split= \(--val-split\), one of"),
        ({"lr": 1e30, "steps": 4}, "expected finite numbers; lower the learning rate"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_nothing(shapes, tmp_path, changes, message):
    model, beside, masks = made("blip")
    with pytest.raises(mf.MultiflowError, match=message):
        finetune("retrieval", model, masks, settings_for(shapes / "coco", **changes), tmp_path / "run", beside)
    assert not (tmp_path / "run").exists()


def test_masks_of_other_layers_or_of_another_model(shapes, tmp_path):
    model, beside, _ = made("xvlm")
    wide = mf.prune(model, "random", 0.5, adapter=every(model, exclude="decoder$")).masks[0.5]
    with pytest.raises(mf.MultiflowError, match="the masks cover layer '.*', which is none that the model takes into"):
        finetune("retrieval", model, wide, settings_for(shapes / "coco"), tmp_path / "run", beside)
    with pytest.raises(mf.MultiflowError, match="the masks are those of another model: it has no layer"):
        finetune("retrieval", model, made("blip")[2], settings_for(shapes / "coco"), tmp_path / "run", beside)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_run_is_refused(sparse, shapes):
    model, beside, masks = made("blip")
    settings = settings_for(shapes / "coco")
    with pytest.raises(mf.MultiflowError, match="already holds a run; go on with it with resume=True"):
        finetune("retrieval", model, masks, settings, sparse[0], beside)
    with pytest.raises(mf.MultiflowError, match=r"lr \(None then, 0.1 now\)"):
        finetune("retrieval", model, masks, replace(settings, lr=0.1), sparse[0], beside, resume=True)
    other = mf.prune(model, "random", 0.6).masks[0.6]
    with pytest.raises(mf.MultiflowError, match=r"other settings: mask \("):
        finetune("retrieval", model, other, settings, sparse[0], beside, resume=True)


def test_what_is_missing_is_left_out_with_a_warning(shapes, tmp_path):
    for part in ("coco", "images"):
        shutil.copytree(shapes / part, tmp_path / part)
    gone = sorted((tmp_path / "images" / "train2014").iterdir())[0]
    gone.unlink()
    model, beside, _ = made("xvlm")
    settings = settings_for(tmp_path / "coco", steps=1, skip_missing=True)
    with pytest.warns(UserWarning, match=rf"1 items are left out, such as {gone.name} \(no such file\)"):
        finetune("retrieval", model, None, settings, tmp_path / "run", beside)


def test_a_finished_run_resumes_to_its_end(sparse, shapes):
    model, beside, masks = made("blip")
    again = finetune("retrieval", model, masks, settings_for(shapes / "coco"), sparse[0], beside, resume=True)
    assert again == sparse[1]


def test_what_is_given_takes_the_place_of_the_preset():
    preset = Preset(1e-5, 64, epochs=3, image_size=384)
    kind = TASKS["classification"]
    changed = adjust(preset, FinetuneSettings("data", lr=1e-3, epochs=5, image_size=0, weight_decay=0.0))
    assert (changed.lr, changed.epochs, changed.image_size, changed.weight_decay) == (1e-3, 5, None, 0.0)
    plan = plan_of(kind, range(200), changed, FinetuneSettings("data", accumulate=2))
    assert (plan.steps, plan.evaluate_every, plan.accumulate) == (15, 3, 2)
    stepped = adjust(preset, FinetuneSettings("data", steps=100))
    plan = plan_of(kind, range(200), stepped, FinetuneSettings("data"))
    assert (plan.steps, plan.evaluate_every) == (100, 25)
