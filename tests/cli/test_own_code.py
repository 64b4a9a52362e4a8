"""Models whose Python code lies in their folder: every command asks before it runs that, and works once it may."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import multiflow as mf
from tests.data.worlds import write_images

MODEL = """
from transformers import CLIPConfig, CLIPModel


class OwnConfig(CLIPConfig):
    model_type = "own_clip"


class OwnModel(CLIPModel):
    config_class = OwnConfig
"""
PROCESSOR = """
from transformers import CLIPProcessor


class OwnProcessor(CLIPProcessor):
    pass
"""
PRUNING = ("--method", "wanda", "--sparsity", 0.5, "--batch-size", 2, "--data", "data", "--exclude", r"\.1\.")
COMMANDS: dict[str, tuple[Any, ...]] = {
    "show": ("MODEL",),
    "prune": ("MODEL", *PRUNING, "--out", "run"),
    "prune --stream": ("MODEL", *PRUNING, "--stream", "--out", "streamed"),
    "compare": ("MODEL", "--methods", "magnitude", *PRUNING[2:], "--out", "compared"),
    "recover": ("MODEL", "--mask", "MASK", "--data", "data", "--batch-size", 2, "--how", "scale", "--out", "recovered"),
    "shrink": ("MODEL", "--method", "magnitude", "--no-compensate", "--out", "small"),
    "apply": ("MODEL", "MASK", "--out", "sparse"),
    "export": ("MODEL", "--mask", "MASK", "--out", "packed"),
    "speed": ("MODEL", "--mask", "MASK", "--samples", 1, "--seconds", 0.1, "--forms", "dense-fp32"),
    "evaluate retrieval": ("MODEL", "--data", "data", "--split", "all"),
    "finetune retrieval": (
        *("MODEL", "--mask", "MASK", "--data", "data", "--train-split", "all", "--val-split", "all"),
        *("--steps", 1, "--batch-size", 2, "--lr", 1e-3, "--out", "tuned"),
    ),
}


@pytest.fixture
def own(vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CLIP that says of itself that its code, and that of its processor, lie beside it."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(vlm("clip"), tmp_path / "own-clip"))
    (folder / "modeling_own.py").write_text(MODEL)
    (folder / "processing_own.py").write_text(PROCESSOR)
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    more = {"model_type": "own_clip", "architectures": ["OwnModel"], "auto_map": code}
    config = json.loads((folder / "config.json").read_text()) | more
    (folder / "config.json").write_text(json.dumps(config))
    pixels = folder / "preprocessor_config.json"
    pixels.write_text(json.dumps({**json.loads(pixels.read_text()), "processor_class": "OwnProcessor"}))
    processor = {"processor_class": "OwnProcessor", "auto_map": {"AutoProcessor": "processing_own.OwnProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    write_images(tmp_path / "data", [f"{i}.png" for i in range(4)])
    rows = [f"{i}.png,text {i}" for i in range(4)]
    (tmp_path / "data" / "table.csv").write_text("\n".join(["image,text", *rows]))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_code_of_a_model_runs_where_it_is_allowed(command, own, run):
    given = COMMANDS[command]
    if "MASK" in given:
        model = mf.load_model(own, trust_remote_code=True)
        mf.prune(model, "magnitude", 0.5).masks[0.5].save("half.safetensors")
    words = [{"MODEL": own, "MASK": "half.safetensors"}.get(word, word) for word in given]
    refused = run(*command.split(), *words)
    assert refused.code == 2
    assert "modeling_own.py" in refused.err
    assert "--trust-remote-code" in refused.err
    allowed = run(*command.split(), *words, "--trust-remote-code")
    assert allowed.code == 0, allowed


@pytest.fixture
def half(own, tmp_path) -> Path:
    """Half of its weights, by magnitude."""
    model = mf.load_model(own, trust_remote_code=True)
    return mf.prune(model, "magnitude", 0.5).masks[0.5].save(tmp_path / "half.safetensors")


@pytest.mark.parametrize(("command", "option"), [("apply", ()), ("export", ("--mask",))])
def test_what_is_written_asks_again_and_opens(command, option, own, half, run):
    assert run(command, own, *option, half, "--out", "out", "--trust-remote-code").code == 0
    with pytest.raises(mf.MultiflowError, match="trust_remote_code"):
        mf.load_model("out")
    again = mf.load_model("out", trust_remote_code=True)
    assert type(again).__name__ == "OwnModel"
    assert mf.Masks.load(half).is_applied(again)
    assert run("show", "out", "--trust-remote-code").code == 0


@pytest.mark.parametrize("command", ["export", "shrink"])
def test_smaller_models_of_own_code_are_read_by_their_own_processor(command, own, half, run):
    how = ("--mask", half, "--compact") if command == "export" else ("--method", "magnitude", "--no-compensate")
    how += () if command == "export" else ("--allocation", "global")  # so that no config can say the sizes
    assert run(command, own, *how, "--out", "out", "--trust-remote-code").code == 0
    place = "out" if command == "export" else "out/model"
    assert run("evaluate", "retrieval", place, "--data", "data", "--split", "all", "--trust-remote-code").code == 0


@pytest.fixture
def own_processor(vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CLIP as transformers has it, whose processor, or a part of it, has code of its own."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(vlm("clip"), tmp_path / "clip"))
    write_images(tmp_path / "data", [f"{i}.png" for i in range(4)])
    rows = [f"{i}.png,text {i}" for i in range(4)]
    (tmp_path / "data" / "table.csv").write_text("\n".join(["image,text", *rows]))
    return folder


def says(file: Path, **more: Any) -> None:
    """Add to what a JSON file says."""
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.is_file() else {}), **more}))


IMAGES = """
from transformers import CLIPImageProcessorPil


class OwnImages(CLIPImageProcessorPil):
    pass
"""
PARTS = {  # the auto class -> the file that names its code, the code, the class, and what else that file says
    "AutoProcessor": ("processor_config.json", PROCESSOR, "OwnProcessor", "processor_class"),
    "AutoImageProcessor": ("preprocessor_config.json", IMAGES, "OwnImages", "image_processor_type"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("command", ["show", "prune", "evaluate retrieval", "finetune retrieval", "recover"])
def test_code_of_a_processor_alone_runs_where_it_is_allowed(command, part, own_processor, run):
    file, code, kind, names = PARTS[part]
    name = f"code_of_{command.split()[0]}"  # a module of its own: one that was imported does not run again
    (own_processor / f"{name}.py").write_text(f"print('it ran')\n{code}")
    says(own_processor / file, auto_map={part: f"{name}.{kind}"}, **{names: kind})
    mf.prune(mf.load_model(own_processor), "magnitude", 0.5).masks[0.5].save("half.safetensors")
    words = [{"MODEL": own_processor, "MASK": "half.safetensors"}.get(word, word) for word in COMMANDS[command]]
    refused = run(*command.split(), *words)
    assert "it ran" not in refused.out
    assert f"{name}.py" in " ".join((refused.out + refused.err).split())
    assert refused.code == (0 if command == "show" else 2)  # which only could not look at a sample
    allowed = run(*command.split(), *words, "--trust-remote-code")
    assert allowed.code == 0, allowed
    assert "it ran" in allowed.out


def test_code_that_transformers_has_itself_need_not_be_allowed(own_processor, run):
    says(own_processor / "processor_config.json", auto_map={"AutoProcessor": "processing_clip.CLIPProcessor"})
    assert run("prune", own_processor, *PRUNING, "--out", "run").code == 0


def test_code_of_a_tokenizer_is_named(own_processor):
    says(own_processor / "tokenizer_config.json", auto_map={"AutoTokenizer": ["words_own.OwnWords", None]})
    model = mf.load_model(own_processor)
    with pytest.raises(mf.MultiflowError, match=r"words_own\.py.*trust_remote_code"):
        list(mf.calibration_batches(model, "data", batch_size=2))
