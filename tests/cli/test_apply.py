from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import multiflow as mf
from multiflow.cli import apply as command
from multiflow.cli import settings as cli_settings
from multiflow.families.opening import load_model
from tests.cli.conftest import Run
from tests.families.automatic import tiny as clip


@pytest.fixture(scope="module")
def mask_file(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = mf.prune(load_model(tiny), "magnitude", 0.75).save(tmp_path_factory.mktemp("masks") / "run")
    return folder / "mask-0.75.safetensors"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_ordinary_folder_with_zeros(run: Run, tiny: Path, mask_file: Path, tmp_path: Path) -> None:
    ran = run("apply", tiny, mask_file, "--out", "deep/pruned")
    assert ran.code == 0
    assert ran.err == ""
    masks = mf.Masks.load(mask_file)
    zeros = sum(map(masks.dropped, masks))
    assert f"{zeros:,} of {masks.layout.size:,} prunable weights zero (75.00 %; vision " in ran.out

    out = tmp_path / "deep" / "pruned"
    assert names(out) == ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert names(out.parent) == ["pruned"]
    assert (out / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # readable by whoever may read the others
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((tiny / "config.json").read_text())
    assert "sparsity_config" not in config

    before, after = load_file(tiny / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in after.items():
        layer = name.removesuffix(".weight")
        kept = masks[layer] if layer in masks.layout else torch.ones_like(weight, dtype=torch.bool)
        assert torch.equal(weight[kept], before[name][kept])
        assert not weight[~kept].any()
        assert not weight[~kept].signbit().any()
    model: Any = load_model(out)
    assert type(model).__name__ == "XVLMForPretraining"
    assert masks.apply_(model).sparsity == masks.sparsity


def test_dtype(run: Run, tiny: Path, mask_file: Path, tmp_path: Path) -> None:
    assert run("apply", tiny, mask_file, "--out", "half", "--dtype", "float16").code == 0
    with safe_open(tmp_path / "half" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_an_original_checkpoint_becomes_a_folder(run: Run, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "xvlm"
    source = [golden / "weights.safetensors", "--family", "xvlm", "--config", golden / "config.json"]
    assert run("prune", *source, "--method", "magnitude", "--sparsity", 0.5, "--out", "out").code == 0
    assert run("apply", source[0], "out/mask-0.5.safetensors", *source[1:], "--out", "pruned").code == 0
    masks = mf.Masks.load("out/mask-0.5.safetensors")
    weights = load_file(tmp_path / "pruned" / "model.safetensors")
    for name in masks:
        assert weights[f"{name}.weight"].count_nonzero() <= masks[name].sum()


@pytest.mark.filterwarnings("default")
def test_masks_made_for_other_weights_are_a_warning(run: Run, tiny: Path, mask_file: Path, tmp_path: Path) -> None:
    model: Any = load_model(tiny)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model.save_pretrained(tmp_path / "other")
    ran = run("apply", "other", mask_file, "--out", "pruned")
    assert ran.code == 0
    assert ran.err.startswith("multiflow: warning: the masks were made for other weights")
    assert ran.err.count("\n") == 1


def test_masks_of_another_model_are_refused(run: Run, mask_file: Path, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "xvlm"
    source = [golden / "weights.safetensors", mask_file, "--family", "xvlm", "--config", golden / "config.json"]
    assert "the masks are those of another model" in run("apply", *source, "--out", "pruned").error
    assert names(tmp_path) == []


def altered(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda data: data[: len(data) // 2], "holds no masks, or is damaged"),
        (lambda data: b"", "holds no masks, or is damaged"),
        (altered, "was altered: its checksum does not fit"),
    ],
)
def test_truncated_and_altered_files(
    run: Run, tiny: Path, mask_file: Path, tmp_path: Path, content: Any, said: str
) -> None:
    (tmp_path / "mask.safetensors").write_bytes(content(mask_file.read_bytes()))
    assert said in run("apply", tiny, "mask.safetensors", "--out", "pruned").error
    assert names(tmp_path) == ["mask.safetensors"]


def test_a_model_file_is_no_mask_file(run: Run, tiny: Path) -> None:
    error = run("apply", tiny, tiny / "model.safetensors", "--out", "pruned").error
    assert "model.safetensors" in error
    assert "holds no masks" in error


@pytest.mark.parametrize("out", ["file", "file/below", "full"])
def test_an_output_folder_that_cannot_be_taken(run: Run, tiny: Path, mask_file: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    assert f"output folder '{out}'" in run("apply", tiny, mask_file, "--out", out).error
    assert names(tmp_path) == ["file", "full"]
    assert names(tmp_path / "full") == ["thesis.tex"]


def test_the_output_folder_is_looked_at_before_the_model_is_loaded(
    run: Run, tiny: Path, mask_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_settings, "open_model", lambda *args: pytest.fail("loaded"))
    assert "output folder" in run("apply", tiny, mask_file, "--out", tiny).error


def test_a_failure_while_writing_leaves_nothing(
    run: Run, tiny: Path, mask_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.shutil, "copyfile", full)
    (tmp_path / "empty").mkdir()
    for out in ("deep/pruned", "empty"):
        assert "(No space left on device)" in run("apply", tiny, mask_file, "--out", out).error
    assert names(tmp_path) == ["empty"]
    assert names(tmp_path / "empty") == []


def test_what_does_not_survive_saving_is_found_out(
    run: Run, tiny: Path, mask_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multiflow.families.xvlm.models import XVLMForPretraining

    whole = XVLMForPretraining.from_pretrained.__func__

    def forgetful(cls: type, *args: Any, **options: Any) -> Any:
        model = whole(cls, *args, **options)
        if ".pruned" in str(args[0]):
            with torch.no_grad():
                model.vision_encoder.encoder.layers[0].mlp.fc1.weight[0, 0] += 1
        return model

    monkeypatch.setattr(XVLMForPretraining, "from_pretrained", classmethod(forgetful))
    error = run("apply", tiny, mask_file, "--out", "pruned").error
    assert "layers.0.mlp.fc1' of a XVLMForPretraining" in error
    assert names(tmp_path) == []


def test_out_is_needed(run: Run, tiny: Path, mask_file: Path) -> None:
    assert "lacks its argument --out" in run("apply", tiny, mask_file).error


def test_changed_weights_come_along(run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    chita = ["--method", "chita", "--data", pairs, "--batches", 2, "--batch-size", 4]
    ran = run("prune", tiny, *chita, "--sparsity", 0.5, "--out", "run")
    assert ran.code == 0
    assert re.search(r"chita takes 2 gradient rows and 6 more to work with: 0\.\d MB", ran.err)
    assert "the kept weights have changed" in ran.out
    assert run("apply", tiny, "run/mask-0.5.safetensors", "--out", "sparse").code == 0
    changed, model = load_file(tmp_path / "run" / "weights-0.5.safetensors"), load_model(tmp_path / "sparse")
    masks = mf.Masks.load(tmp_path / "run" / "mask-0.5.safetensors")
    before = load_model(tiny)
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(weight, changed[name])
        assert not weight[~mask].any()
    assert any(not torch.equal(changed[n][m], before.get_submodule(n).weight[m]) for n, m in masks.items())

    (tmp_path / "run" / "weights-0.5.safetensors").unlink()
    failed = run("apply", tiny, "run/mask-0.5.safetensors", "--out", "other")
    assert "cannot be read from 'run/weights-0.5" in failed.error
    assert not (tmp_path / "other").exists()


def test_masks_of_another_sparsity_than_was_asked_for(run: Run, tiny: Path, mask_file: Path) -> None:
    assert "drops 75 % of the weights, not 25 % as --sparsity 0.25 says; they are inverted" in (
        run("apply", tiny, mask_file, "--sparsity", "25%", "--out", "turned").error
    )
    assert run("apply", tiny, mask_file, "--sparsity", "0.75", "--out", "right").code == 0


def test_weights_keep_their_dtype_and_files_their_size_and_the_card_says_what_was_done(
    run: Run, tmp_path: Path
) -> None:
    model: Any = clip.build("clip", "CLIPModel").half()
    model.logit_scale.data = model.logit_scale.data.float()  # one that is kept wider than the others
    model.save_pretrained(tmp_path / "dense", max_shard_size="60KB")
    (tmp_path / "dense" / "preprocessor_config.json").write_text("{}")
    prune = ("prune", tmp_path / "dense", "--method", "magnitude", "--sparsity", "0.5", "--out", tmp_path / "run")
    assert run(*prune).code == 0
    mask_file = tmp_path / "run" / "mask-0.5.safetensors"
    assert run("apply", tmp_path / "dense", mask_file, "--out", tmp_path / "out").code == 0
    before, after = (
        {name: value for file in (tmp_path / at).glob("*.safetensors") for name, value in load_file(file).items()}
        for at in ("dense", "out")
    )
    assert {name: value.dtype for name, value in before.items()} == {name: value.dtype for name, value in after.items()}
    sizes = [max(file.stat().st_size for file in (tmp_path / at).glob("*.safetensors")) for at in ("dense", "out")]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert sizes[1] <= 1.1 * sizes[0]
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    facts = (
        str(tmp_path / "dense"),
        "magnitude",
        "vision",
        "| 0.5 | 50 % |",
        "multiflow apply",
        f"multiflow {mf.__version__}",
    )
    assert all(fact in card for fact in facts)
    masks = mf.Masks.load(mask_file)
    assert masks.is_applied(load_model(tmp_path / "out"))


@pytest.mark.parametrize("command", [["apply"], ["export", "--mask"], ["evaluate", "retrieval", "--mask"]])
def test_the_folder_of_a_run_lists_its_masks(run, tiny, command):
    assert run("prune", tiny, "--method", "magnitude", "--sparsity", 0.5, 0.75, "--out", "run").code == 0
    words = [word for word in command if not word.startswith("--")]
    option = [word for word in command if word.startswith("--")]
    beside = ["--data", "."] if "evaluate" in words else ["--out", "o"]
    said = run(*words, tiny, *option, "run", *beside).error
    assert "mask-0.5.safetensors" in said
    assert "mask-0.75.safetensors" in said
