from __future__ import annotations

import random
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import Pipe

import pytest
import torch
from safetensors.torch import load_file

import multiflow as mf
from multiflow.base.artifacts import read_facts
from multiflow.families.opening import Preprocessing
from multiflow.tasks.task import TASKS
from multiflow.training.checkpoint import checkpoints, load_checkpoint
from multiflow.training.finetune import build, finetune, new_parameters
from multiflow.training.loop import make_optimizer
from multiflow.training.settings import Finetuning, TrainSettings, plan_finetuning
from multiflow.training.tracking import read_metrics
from multiflow.worlds.shapes import write
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests import processes
from tests.small import every
from tests.tiny import FAMILIES

STEPS = 32


def pretrained(family: str):
    """A small model with random weights, its tokenizer, and masks of it."""
    tokenizer = shapes_tokenizer(family)
    model = shapes_model(FAMILIES[family], len(tokenizer)).eval()
    return model, Preprocessing(tokenizer), mf.prune(model, "random", 0.5).masks[0.5]


def settings_for(data: object, **changes: object) -> Finetuning:
    plain = Finetuning(
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
    model, inputs, masks = pretrained("blip")
    figures = finetune("retrieval", model, masks, settings_for(shapes / "coco"), out, inputs, progress=seen.append)
    return out, figures, seen


def test_the_best_checkpoint_is_an_ordinary_folder(sparse):
    out, figures, seen = sparse
    stored = mf.load_model(out / "model")
    masks = mf.Masks.load(out / "mask.safetensors")
    for name, mask in masks.items():
        assert not stored.get_submodule(name).weight[~mask].any()
    assert masks.sparsity == pytest.approx(0.5, abs=0.01)
    assert {"tokenizer.json", "config.json", "validation.json"} <= {path.name for path in (out / "model").iterdir()}
    assert read_facts(out / "figures.json", "figures", "") == figures
    looked = [r for r in read_metrics(out / "train") if "val/mean recall" in r]
    assert [r["step"] for r in looked] == [10, 20, 30, 32]
    best = max(looked, key=lambda r: r["val/mean recall"])
    assert (figures["step"], figures["mean recall"]) == (best["step"], best["val/mean recall"])
    assert {p.stage for p in seen} == {"train", "evaluate"}


def test_zeros_stay_in_weights_optimizer_and_momentum_copies_and_the_rest_trains(sparse):
    model, _, masks = pretrained("blip")
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


def fine_tune_step_by_step(data, out, other):
    def wait(progress):
        other.send(progress.step)
        other.recv()

    model, inputs, masks = pretrained("blip")
    finetune("retrieval", model, masks, settings_for(data), out, inputs, resume=True, progress=wait)


def test_a_run_killed_three_times_at_a_random_moment_ends_with_the_same_weights(sparse, shapes, tmp_path):
    out = tmp_path / "run"
    for _ in range(3):
        ours, its = Pipe()
        with processes.fork(fine_tune_step_by_step, shapes / "coco", out, its) as run:
            its.close()
            for _ in range(random.randint(1, 9)):  # steps and evaluated batches: fewer in all than the run has
                ours.recv()
                ours.send("go on")
            time.sleep(random.uniform(0, 0.02))
            run.process.kill()
            assert run.end() == -signal.SIGKILL
    model, inputs, masks = pretrained("blip")
    figures = finetune("retrieval", model, masks, settings_for(shapes / "coco"), out, inputs, resume=True)
    assert figures == sparse[1]
    for name in ("model", f"train/step-{STEPS:08d}"):
        ours, theirs = (load_file(run / name / "model.safetensors") for run in (out, sparse[0]))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("task", ["captioning", "vqa"])
def test_dense_fine_tuning_of_the_other_tasks(shapes, tmp_path, task):
    model, inputs, _ = pretrained("xvlm")
    data = shapes / ("vqa" if task == "vqa" else "coco")
    settings = settings_for(data, steps=2, limit=6, accumulate=2, precision="bf16", optimizer="sgd", lr=1e-3)
    with pytest.warns(UserWarning, match="answers in .* to choose from") if task == "vqa" else nullcontext():
        figures = finetune(task, model, None, settings, tmp_path / "run", inputs)
    assert figures["step"] in (1, 2)
    assert not (tmp_path / "run" / "mask.safetensors").exists()
    stored = mf.load_model(tmp_path / "run" / "model")
    assert type(stored) is type(mf.task_model(model, task))
    if task == "captioning":
        assert stored.config.eos_token_id == inputs.tokenizer.sep_token_id


def test_masks_of_a_changed_decoder_and_new_parameters(shapes):
    model, inputs, masks = pretrained("xvlm")
    data = TASKS["vqa"].open(shapes / "vqa", "train", limit=4)
    for mask_decoder in (True, False):
        plan = plan_finetuning("vqa", model, settings_for(shapes, mask_decoder=mask_decoder))
        built = build(plan, model, masks, data, inputs)
        assert any(name.startswith("text_decoder.") for name in built.masks) == mask_decoder
        assert built.copies == {}
        assert built.new == set()


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
        ({"train_split": "nix"}, r"split 'nix' is unknown in .*; give train_split=NAME, one of"),
        ({"val_split": "nix"}, r"split 'nix' is unknown in .*; give val_split=NAME, one of"),
        ({"lr": 1e30, "steps": 4}, "expected finite numbers; lower the learning rate"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_nothing(shapes, tmp_path, changes, message):
    model, inputs, masks = pretrained("blip")
    with pytest.raises(mf.MultiflowError, match=message):
        finetune("retrieval", model, masks, settings_for(shapes / "coco", **changes), tmp_path / "run", inputs)
    assert not (tmp_path / "run").exists()


def test_masks_of_other_layers_or_of_another_model(shapes, tmp_path):
    model, inputs, _ = pretrained("xvlm")
    wide = mf.prune(model, "random", 0.5, adapter=every(model, exclude="decoder$")).masks[0.5]
    with pytest.raises(mf.MultiflowError, match="the masks cover layer '.*', which is none that the model takes into"):
        finetune("retrieval", model, wide, settings_for(shapes / "coco"), tmp_path / "run", inputs)
    with pytest.raises(mf.MultiflowError, match="another model: it has no layer"):
        finetune("retrieval", model, pretrained("blip")[2], settings_for(shapes / "coco"), tmp_path / "run", inputs)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_run_is_refused(sparse, shapes):
    model, inputs, masks = pretrained("blip")
    settings = settings_for(shapes / "coco")
    with pytest.raises(mf.MultiflowError, match="already holds a run; .*resume=True"):
        finetune("retrieval", model, masks, settings, sparse[0], inputs)
    with pytest.raises(mf.MultiflowError, match=r"lr \(None then, 0.1 now\)"):
        finetune("retrieval", model, masks, replace(settings, lr=0.1), sparse[0], inputs, resume=True)
    other = mf.prune(model, "random", 0.6).masks[0.6]
    with pytest.raises(mf.MultiflowError, match=r"other settings: mask \("):
        finetune("retrieval", model, other, settings, sparse[0], inputs, resume=True)


def test_what_is_missing_is_left_out_with_a_warning(shapes, tmp_path):
    for part in ("coco", "images"):
        shutil.copytree(shapes / part, tmp_path / part)
    gone = sorted((tmp_path / "images" / "train2014").iterdir())[0]
    gone.unlink()
    model, inputs, _ = pretrained("xvlm")
    settings = settings_for(tmp_path / "coco", steps=1, skip_missing=True)
    with pytest.warns(UserWarning, match=rf"left out: 1 item, such as {gone.name} \(no such file\)"):
        finetune("retrieval", model, None, settings, tmp_path / "run", inputs)


def test_a_finished_run_resumes_to_its_end(sparse, shapes):
    model, inputs, masks = pretrained("blip")
    again = finetune("retrieval", model, masks, settings_for(shapes / "coco"), sparse[0], inputs, resume=True)
    assert again == sparse[1]


def test_what_is_given_takes_the_place_of_the_preset():
    vit = mf.load_model("vit-digits")
    given = Finetuning("data", lr=1e-3, epochs=5, weight_decay=0.0, batch_size=64, accumulate=2)
    plan = plan_finetuning("classification", vit, given)
    assert (plan.preset.lr, plan.preset.epochs, plan.preset.weight_decay) == (1e-3, 5, 0.0)
    found = plan.train_settings(range(200))
    assert (found.steps, found.evaluate_every, found.accumulate, found.lr) == (15, 3, 2, 1e-3)
    found = plan_finetuning("classification", vit, replace(given, epochs=None, steps=100)).train_settings(range(200))
    assert (found.steps, found.evaluate_every) == (100, 25)


def test_an_image_size_of_zero_is_that_of_the_pretrained_model():
    model = pretrained("xvlm")[0]
    sizes = [plan_finetuning("vqa", model, Finetuning("data", image_size=n)).preset.image_size for n in (None, 0)]
    assert sizes == [384, None]
