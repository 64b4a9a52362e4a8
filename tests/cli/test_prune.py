from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import multiflow as mf
from multiflow.cli.prune import PruneSettings, check, run_settings
from multiflow.data import Batches, Inputs, load_tokenizer, open_data
from multiflow.models import load_model
from multiflow.tasks.batches import Counted
from tests.cli.conftest import Run


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_masks_are_those_of_the_library(run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    ran = run("prune", tiny, "--data", pairs, "--batches", 3, "--batch-size", 4, "--seed", 5, "--out", "out")
    assert ran.code == 0
    assert files(tmp_path) == [
        f"out/{name}"
        for name in ("mask-0.63.safetensors", "mask-0.75.safetensors", "mask-0.9.safetensors", "result.json")
    ]
    model = load_model(tiny)
    inputs = Inputs(load_tokenizer(tiny), 32, 8)
    batches = Batches(open_data(pairs), inputs, batch_size=4, limit=3, seed=5)
    expected = mf.prune(model, "multiflow", batches=batches, seed=5)
    for sparsity, masks in expected.masks.items():
        assert mf.Masks.load(f"out/mask-{sparsity:g}.safetensors") == masks


def test_what_is_printed_and_written(run: Run, tiny: Path, pairs: Path) -> None:
    ran = run("prune", tiny, "--data", pairs, "--sparsity", 0.5, "--batches", 2, "--batch-size", 4, "--out", "out")
    result = json.loads(Path("out/result.json").read_text())
    assert result["settings"]["method"] == "multiflow"
    assert result["settings"]["batches"] == 2
    assert result["data"] | {"source": ""} == {
        "source": "", "kind": "pairs", "samples": 8, "looked_at": 8, "skipped": 0, "skips": []
    }  # fmt: skip
    assert result["run"] == {
        "model": str(tiny), "data": str(pairs), "sparsity": [0.5], "batches": 2, "batch_size": 4
    }  # fmt: skip
    masks = mf.Masks.load("out/mask-0.5.safetensors")
    assert result["masks"]["0.5"]["sparsity"] == masks.sparsity
    assert "calibrated on 2 batches, 8 pairs" in ran.out
    assert "mask-0.5.safetensors" in ran.out
    assert "vision" in ran.out
    assert "text" in ran.out
    assert "fusion" in ran.out
    assert "50.00 %" in ran.out
    assert "calibrate 2/2 batches" in ran.err
    assert "batches/s, ETA 0:00" in ran.err


def test_data_free_methods_need_no_data_and_the_folder_is_named_after_the_settings(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    assert run("prune", tiny, "--method", "magnitude", "--sparsity", 0.5).code == 0
    assert run("prune", tiny, "--method", "magnitude", "--sparsity", 0.6).code == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 2
    assert all(name.startswith("prune-magnitude-") for name in names)
    assert "already holds another run" in run("prune", tiny, "--method", "magnitude", "--sparsity", 0.5).error
    result = json.loads((tmp_path / "runs" / names[0] / "result.json").read_text())
    assert result["data"] is None


def test_regions_are_calibrated_on_too(run: Run, tiny: Path, world: Path) -> None:
    ran = run("prune", tiny, "--data", world / "pretrain", "--batches", 2, "--batch-size", 4, "--out", "out")
    assert ran.code == 0
    assert "2 batches, 16 pairs" in ran.out
    assert "regions" in json.loads(Path("out/result.json").read_text())["data"]["source"]


def test_pattern_allocation_and_hyper_parameters(run: Run, tiny: Path, pairs: Path) -> None:
    assert run("prune", tiny, "--method", "magnitude", "--pattern", "2:4", "--out", "a").code == 0
    masks = mf.Masks.load("a/mask-0.5.safetensors")
    name = next(iter(masks))
    assert (masks[name].view(-1, 4).sum(1) == 2).all()
    options = ["--data", pairs, "--batches", 1, "--sparsity", 0.5, "--allocation", "global", "--set", "alpha=0.25"]
    assert run("prune", tiny, "--method", "ria", *options, "--out", "b").code == 0
    settings = json.loads(Path("b/result.json").read_text())["settings"]
    assert settings["allocation"] == "global"
    assert settings["hyper"] == {"alpha": 0.25}


def test_dtype_is_what_is_computed_in_and_the_masks_fit_the_weights_as_stored(
    run: Run, tiny: Path, pairs: Path
) -> None:
    options = ["--data", pairs, "--batches", 1, "--sparsity", 0.5]
    assert run("prune", tiny, *options, "--dtype", "bfloat16", "--out", "half").code == 0
    model = load_model(tiny)
    masks = mf.Masks.load("half/mask-0.5.safetensors")
    batches = Batches(open_data(pairs), Inputs(load_tokenizer(tiny), 32, 8), limit=1)
    assert masks == mf.prune(copy.deepcopy(model).to(torch.bfloat16), "multiflow", 0.5, batches).masks[0.5]
    masks.apply_(model)  # no warning


def interrupt_at(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Let calibration be interrupted after a batch."""
    whole = Counted.__iter__

    def cut(batches: Counted) -> Iterator[Any]:
        for number, item in enumerate(whole(batches), start=1):
            if number > batch:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(Counted, "__iter__", cut)


def test_a_run_that_was_stopped_goes_on_to_the_same_masks(
    run: Run, tiny: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["prune", tiny, "--data", pairs, "--batch-size", 4, "--sparsity", 0.5, "--checkpoint-every", 2]
    assert run(*args, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        ran = run(*args, "--out", "cut")
    assert ran.code == 130
    assert ran.err.endswith(
        "multiflow: 'cut' keeps what has been done; go on with the same command and --resume\nmultiflow: interrupted\n"
    )
    assert files(Path("cut")) == ["calibration.safetensors", "run.json"]
    assert "unfinished run; go on with it with --resume" in run(*args, "--out", "cut").error
    assert "other settings: seed (default then, 7 now)" in run(*args, "--seed", 7, "--out", "cut", "--resume").error
    assert "has not ended" in run("show", "cut").error
    ran = run(*args, "--out", "cut", "--resume", "--checkpoint-every", 3)
    assert ran.code == 0
    assert "calibrate 5/6" in ran.err  # the first four were not computed again
    assert files(Path("cut")) == ["mask-0.5.safetensors", "result.json"]
    assert mf.Masks.load("cut/mask-0.5.safetensors") == mf.Masks.load("whole/mask-0.5.safetensors")
    assert json.loads(Path("cut/result.json").read_text())["data"]["samples"] == 24
    assert "already holds another run" in run(*args, "--out", "cut", "--resume").error


def test_a_run_stopped_before_its_first_checkpoint_leaves_nothing(
    run: Run, tiny: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupt_at(monkeypatch, 1)
    assert run("prune", tiny, "--data", pairs, "--batch-size", 4, "--checkpoint-every", 2).code == 130
    assert files(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoints_on_request(
    run: Run, tiny: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupt_at(monkeypatch, 4)
    assert run("prune", tiny, "--data", pairs, "--batch-size", 4, "--checkpoint-every", 0).code == 130
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--method", "wandaa"], "unknown pruner 'wandaa'; known: "),
        (["--method", "wandaa"], "did you mean 'wanda'?"),
        (["--sparsity", "63"], "did you mean 0.63?"),
        (["--sparsity", "1"], "sparsity 1.0 is not in [0, 1)"),
        (["--sparsity", "-0.1"], "sparsity -0.1 is not in [0, 1)"),
        (["--sparsity"], "Missing value for argument '--sparsity'"),
        (["--sparsity", "0.5", "nan"], "sparsity nan is not in [0, 1)"),
        (["--pattern", "2:5"], "pattern '2:5' needs input sizes that 5 divides"),
        (["--pattern", "4:2"], "pattern '4:2' keeps 4 of 2"),
        (["--pattern", "2-4"], "unknown pattern '2-4'"),
        (["--pattern", "2:4", "--sparsity", "0.75"], "pattern '2:4' means sparsity 0.5, not 0.75"),
        (["--allocation", "globall"], "known: global, uniform, multimodal; did you mean 'global'?"),
        (["--set", "alpha"], "--set got 'alpha'; expected NAME=VALUE"),
        (["--set", "alpha=1"], "pruner 'magnitude' has no hyper-parameter 'alpha'"),
        (["--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
        (["--device", "cpuu"], "unknown device 'cpuu'; known: auto, cpu, cuda, cuda:N, mps; did you mean 'cpu'?"),
        (["--dtype", "float"], "unknown dtype 'float'"),
        (["--until-stable"], "watches the masks of one running calibration, but pruner 'magnitude' needs no data"),
        (["--method", "itersnip", "--until-stable"], "prunes in steps; leave --until-stable out, or take one of: snip"),
        (["--augment", "papers"], "unknown augmentation 'papers'; known: paper; did you mean 'paper'?"),
        (["--split", "val"], "--split val was given without data; name them with --data SOURCE"),
        (["--checkpoint-every", "-1"], "--checkpoint-every -1 was given; expected 0 (none) or more"),
        (["--method", "multiflow"], "needs calibration data and none were given; name some with --data"),
        (["--method", "multiflow", "--data", "nowhere"], "no data at 'nowhere'"),
        (["--family", "xvlm"], "needs neither family nor config"),
        (["--family", "xvlm"], "--family is for files of an original release"),
        (["--out", "file"], "output folder 'file' is a file"),
        (["--out", "file/below"], "cannot write into output folder 'file/below'"),
        (["--out", "full"], "output folder 'full' already holds other files"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(
    run: Run, tiny: Path, tmp_path: Path, args: list[str], said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    method = [] if "--method" in args else ["--method", "magnitude"]
    assert said in run("prune", tiny, *method, *args).error
    assert files(tmp_path) == ["file", "full/thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


@pytest.mark.parametrize(("model", "said"), [
    ("nowhere/model.pth", "there is no file or folder 'nowhere/model.pth'"),
    ("/nowhere/model", "there is no file or folder '/nowhere/model'"),
    ("empty", "folder 'empty' holds no config.json"),
])  # fmt: skip
def test_a_model_that_is_not_there(run: Run, tmp_path: Path, model: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    assert said in run("prune", model, "--method", "magnitude").error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--batches", 0), ("--batches", -3), ("--batch-size", 0), ("--workers", -1)]
)
def test_counts_below_one(run: Run, tiny: Path, pairs: Path, option: str, value: int, tmp_path: Path) -> None:
    least = 0 if option == "--workers" else 1
    said = f"{option} {value} was given; expected at least {least}"
    assert said in run("prune", tiny, "--data", pairs, option, value).error
    assert list(tmp_path.iterdir()) == []


def image_folder(folder: Path, world: Path, count: int = 6) -> Path:
    """Images with captions beside them."""
    folder.mkdir()
    for source in sorted((world / "pretrain" / "vg" / "images").iterdir())[:count]:
        shutil.copy(source, folder / source.name)
        (folder / source.name).with_suffix(".txt").write_text("a red square")
    return folder


def test_broken_images_are_skipped_counted_and_reported(run: Run, tiny: Path, world: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data", world)
    (folder / "1.jpg").write_bytes(b"no image")
    (folder / "2.jpg").write_bytes((folder / "3.jpg").read_bytes()[:200])
    ran = run("prune", tiny, "--data", folder, "--batch-size", 2, "--sparsity", 0.5, "--out", "out")
    assert ran.code == 0
    assert "4 pairs" in ran.out
    assert "2 of 6 images skipped: " in ran.out
    assert "1.jpg (" in ran.out
    assert "2.jpg (" in ran.out
    assert json.loads(Path("out/result.json").read_text())["data"]["skipped"] == 2
    assert "2 of 6 images skipped: " in run("show", "out").out


def test_only_broken_images_are_an_error(run: Run, tiny: Path, world: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "data", world, count=2)
    for image in folder.glob("*.jpg"):
        image.write_bytes(b"no image")
    assert "can be read" in run("prune", tiny, "--data", folder, "--out", "out").error
    assert not (tmp_path / "out").exists()


def test_missing_captions(run: Run, tiny: Path, world: Path, tmp_path: Path) -> None:
    assert "captions are missing" in run("prune", tiny, "--data", world / "images" / "val2014").error
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_the_data_folder(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "no data found in 'data'" in run("prune", tiny, "--data", "data").error
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_tokenizer_that_is_not_there_names_the_option(run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    assert "--tokenizer DIR_OR_ID" in run("prune", tiny, "--data", pairs, "--tokenizer", "./nowhere").error
    assert list(tmp_path.iterdir()) == []


def test_no_tokenizer_at_all_names_the_option(
    run: Run, tiny: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    monkeypatch.setattr("multiflow.tasks.loading.DEFAULT_TOKENIZER", "nobody/no-tokenizer")
    error = run("prune", bare, "--data", pairs).error
    assert "no tokenizer found at 'nobody/no-tokenizer'" in error
    assert "--tokenizer DIR_OR_ID" in error
    assert run("prune", bare, "--data", pairs, "--tokenizer", tiny, "--batches", 1).code == 0


def test_a_tokenizer_with_more_tokens_than_the_model_embeds(run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    from multiflow.data import build_word_tokenizer

    build_word_tokenizer([f"word{i}" for i in range(500)]).save_pretrained(tmp_path / "large")
    error = run("prune", tiny, "--data", pairs, "--tokenizer", "large").error
    assert "the tokenizer has 505 tokens, the model embeds" in error
    assert "--tokenizer DIR_OR_ID" in error


def test_a_pattern_that_does_not_fit_offers_what_the_command_line_can_do(run: Run, tiny: Path) -> None:
    error = run("prune", tiny, "--method", "magnitude", "--pattern", "2:5").error
    assert error.endswith("has 16 inputs; choose another N:M")


def test_infinite_activations_name_layer_and_batch(run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    model: Any = load_model(tiny)
    with torch.no_grad():
        model.vision_encoder.encoder.layers[0].mlp.fc1.weight.fill_(float("inf"))
    model.save_pretrained(tmp_path / "bad")
    shutil.copy(tiny / "tokenizer.json", tmp_path / "bad")
    shutil.copy(tiny / "tokenizer_config.json", tmp_path / "bad")
    error = run("prune", "bad", "--data", pairs, "--out", "out").error
    assert "NaN or Inf in the input of layer 'vision_encoder.encoder.layers.0.mlp.fc2' in batch 1" in error
    assert not (tmp_path / "out").exists()


def test_the_bundled_model_makes_its_own_scenes(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tasks.loading", "cli.prune"):
        monkeypatch.setattr(f"multiflow.{module}.bundled_models", lambda: {"xvlm-shapes": tiny})
    ran = run("prune", "xvlm-shapes", "--batches", 2, "--batch-size", 3, "--out", "out")
    assert ran.code == 0
    assert "2 batches, 6 pairs" in ran.out
    error = run("prune", "xvlm-shape", "--method", "magnitude").error
    assert "unknown model 'xvlm-shape'" in error
    assert error.endswith("did you mean 'xvlm-shapes'?")


def test_an_original_checkpoint(run: Run, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "xvlm"
    source = [golden / "weights.safetensors", "--family", "xvlm", "--config", golden / "config.json"]
    assert run("prune", *source, "--method", "magnitude", "--sparsity", 0.5, "--out", "out").code == 0
    assert mf.Masks.load("out/mask-0.5.safetensors").sparsity == pytest.approx(0.5, abs=1e-5)
    assert "family" in run("prune", source[0], "--method", "magnitude").error
    error = run("prune", source[0], "--family", "xvlmm", "--method", "magnitude").error
    assert "did you mean 'xvlm'?" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_run_settings_are_those_that_differ_from_their_defaults() -> None:
    assert run_settings(PruneSettings("m")) == {"model": "m"}
    free = PruneSettings("m", out="o", checkpoint_every=3, resume=True, device="cpu", workers=2)
    assert run_settings(free) == {"model": "m"}
    assert run_settings(PruneSettings("m", seed=1, set=("a=1",))) == {"model": "m", "set": ("a=1",), "seed": 1}


def test_check_gives_the_pruner_and_all_its_hyper_parameters() -> None:
    pruner, hyper = check(PruneSettings("m", data="d", method="ria"))
    assert pruner.name == "ria"
    assert hyper == {"alpha": 0.5}
