from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import multiflow as mf
from multiflow.cli import COMMANDS
from multiflow.cli.finetune import FinetuneSettings
from multiflow.cli.settings import parse
from tests.cli.conftest import Run

SMALL = ("--preset", "shapes", "--steps", 2, "--batch-size", 4, "--limit", 4, "--precision", "fp32", "--device", "cpu")


@pytest.fixture(scope="session")
def mask(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mask file of the tiny X-VLM."""
    masks = mf.prune(mf.load_model(tiny), "magnitude", 0.5).masks[0.5]
    return masks.save(tmp_path_factory.mktemp("masks") / "mask.safetensors")


def test_a_sparse_model_from_the_mask_file_to_an_ordinary_folder(run: Run, tiny: Path, mask: Path, world: Path) -> None:
    command = ("finetune", "retrieval", tiny, "--mask", mask, "--data", world / "coco", "--out", "run", *SMALL)
    ran = run(*command)
    assert ran.code == 0, ran.err
    assert "mean recall" in ran.out
    assert "train 2/2" in ran.err
    assert re.search(r"evaluate (\d+)/\1 \| \d+ samples/s, ETA 0:00$", ran.err, re.MULTILINE), ran.err
    stored, masks = mf.load_model("run/model"), mf.Masks.load("run/mask.safetensors")
    assert all(not stored.get_submodule(name).weight[~mask].any() for name, mask in masks.items())
    assert "run/model on the validation data, in percent" in ran.out
    told, following = ran.out.rsplit("next: ", 1)
    assert run("show", "run").out == told
    program, *words = shlex.split(following)
    assert (program, words[-2:]) == ("multiflow", ["--k-test", "16"])  # as the preset looks at the validation data
    evaluated = run(*words)
    assert evaluated.code == 0, evaluated.err
    assert "mean recall" in evaluated.out
    again = run(*command, "--resume")
    assert (again.code, again.out) == (0, ran.out)
    assert "go on with it with --resume" in run(*command).error
    assert "seed (0 then, 1 now)" in run(*command, "--resume", "--seed", 1).error


def test_a_mask_of_the_task_model_goes_on_into_a_second_stage(run: Run, tiny: Path, mask: Path, world: Path) -> None:
    first = ("finetune", "captioning", "--data", world / "coco", *SMALL, "--evaluate-every", 2)
    assert run(*first, tiny, "--mask", mask, "--out", "one").code == 0
    assert run(*first, "one/model", "--mask", "one/mask.safetensors", "--out", "two").code == 0
    masks = [mf.Masks.load(f"{name}/mask.safetensors") for name in ("one", "two")]
    assert masks[0] == masks[1]


def test_images_alone_need_no_tokenizer(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    assert run("digits", "digits", "--images-only").code == 0
    ran = run(
        "finetune", "classification", "vit-digits", "--data", "digits/images", "--out", "run", *SMALL, "--limit", 20
    )
    assert ran.code == 0, ran.err
    config = json.loads(Path("run/model/config.json").read_text())
    assert config["id2label"] == {str(digit): str(digit) for digit in range(10)}
    assert Path("run/model/preprocessor_config.json").is_file()


def test_options_reach_the_task() -> None:
    args = [
        "vqa",
        "blip",
        "--data",
        "vqa",
        "--out",
        "run",
        "--epochs",
        "3",
        "--lr",
        "1e-4",
        "--no-mask-decoder",
        "--shard",
    ]
    got = parse(FinetuneSettings, COMMANDS["finetune"], args)
    assert got is not None
    training = got.training
    assert (training.data, training.epochs, training.lr, training.shard) == ("vqa", 3, 1e-4, True)
    assert not training.mask_decoder
    assert parse(FinetuneSettings, COMMANDS["finetune"], [*args[:6], "--mask-decoder"]).training.mask_decoder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["retrival"], "unknown task 'retrival'; known: captioning, classification, retrieval, tra"),
        (["classification"], "a model of type 'xvlm' cannot do task 'classification'"),
        (["retrieval", "--mask", "none.safetensors"], "none.safetensors"),
        (["retrieval", "--steps", "0"], "--steps 0 was given; expected at least 1"),
        (["retrieval", "--preset", "paperr"], "unknown preset 'paperr'; known: paper, shapes; did you mean 'paper'?"),
        (["retrieval", "--accumulate", "3"], "batch_size 4 cannot be cut into 3 equal parts"),
        (["vqa", "--mask-decoder", "--no-mask-decoder"], "--mask-decoder and --no-mask-decoder were given"),
        (["retrieval", "--shard"], "shard was given, and there is one process"),
        (["retrieval", "--batch", "3"], "takes no option '--batch'; did you mean '--batch-size'?"),
        (["retrieval", "--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
        (["vqa"], "task 'vqa' takes questions about images"),
    ],
)
def test_bad_input(run: Run, tiny: Path, world: Path, tmp_path: Path, words: list[Any], said: str) -> None:
    task, *options = words
    assert said in run("finetune", task, tiny, "--data", world / "coco", "--out", "run", *SMALL, *options).error
    assert not (tmp_path / "run").exists()


def test_the_weights_that_a_method_changed_are_trained_on(run: Run, tiny: Path, world: Path, tmp_path: Path) -> None:
    pruned = ("prune", tiny, "--method", "multiflow-refit", "--sparsity", 0.5, "--data", world / "pretrain/cc3m")
    assert run(*pruned, "--batches", 2, "--batch-size", 2, "--out", "pruned").code == 0
    assert run("apply", tiny, "pruned/mask-0.5.safetensors", "--out", "applied").code == 0
    train = ("finetune", "captioning", "--mask", "pruned/mask-0.5.safetensors", "--data", world / "coco", *SMALL)
    still = (*train, "--lr", "1e-30", "--weight-decay", 0)
    for start, out in ((tiny, "one"), ("applied", "two")):
        ran = run(*still, start, "--out", out)
        assert ran.code == 0, ran.err
    applied = mf.load_model("applied").state_dict()
    for out in ("one", "two"):
        stored = mf.load_model(f"{out}/model").state_dict()
        shared = [name for name in mf.Masks.load(f"{out}/mask.safetensors") if f"{name}.weight" in applied]
        assert len(shared) > 10
        assert all(stored[f"{name}.weight"].equal(applied[f"{name}.weight"]) for name in shared)
    ran = run(*train, "one/model", "--mask", "one/mask.safetensors", "--out", "three")
    assert ran.code == 0, ran.err
    Path("pruned/weights-0.5.safetensors").unlink()
    assert "keep the two files side by side" in run(*train, tiny, "--out", "four").error
    assert not Path("four").exists()
