"""`mf.speed`: which form is the fastest, for which part of the work, in figures, one sentence and one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import multiflow as mf
from multiflow.formats.examples import example_batch, resized
from multiflow.formats.figures import FormSize, SpeedCell, SpeedTable
from multiflow.formats.speeds import memory_of_weights, parts_of
from multiflow.formats.timing import Timing, in_turns
from tests.conftest import Run
from tests.small import ADAPTER, towers_batches, two_towers


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("choices")
    monkeypatch.setattr("multiflow.formats.runtime.TURNS", 1)
    monkeypatch.setattr("multiflow.formats.runtime.choices_file", lambda: place / "choices.json")


def table(**medians: dict[str, float]) -> SpeedTable:
    """A table of the whole model at one sample, by the form."""
    cells = [
        SpeedCell(form.replace("_", " "), part, 1, Timing((t, t, t)))
        for form, parts in medians.items()
        for part, t in parts.items()
    ]
    return SpeedTable("m", tuple(cells), {cell.form: FormSize(100) for cell in cells})


def test_the_sentence_says_what_to_use():
    fast = table(
        dense_fp32={"whole": 2.0, "decoding step": 1.0},
        dense_bf16={"whole": 3.0, "decoding step": 2.0},
        sparse_bf16={"whole": 2.5, "decoding step": 0.4},
    )
    assert fast.baseline == "dense fp32"
    assert "'sparse bf16' is the fastest for a decoding step at 1 sample (2.5 x)" in fast.sentence
    assert "whole model" not in fast.sentence
    slow = table(dense_bf16={"whole": 1.0}, dense_fp32={"whole": 2.0}, sparse_int8={"whole": 1.5})
    assert slow.sentence == "Nothing here is faster than dense bf16."


def test_what_is_within_the_spread_is_not_faster():
    noisy = SpeedTable(
        "m",
        (
            SpeedCell("dense fp32", "whole", 1, Timing((1.0, 1.0, 1.0))),
            SpeedCell("sparse bf16", "whole", 1, Timing((0.5, 0.9, 1.3))),
        ),
        {"dense fp32": FormSize(4), "sparse bf16": FormSize(2)},
    )
    assert noisy.best("whole", 1) == "dense fp32"
    assert "±" in noisy.markdown()


def test_everything_runs_in_turns():
    calls: list[str] = []
    timed = in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, flush=1000)
    assert calls == list("ab" * 4)
    assert [len(t.seconds) for t in timed.values()] == [3, 3]
    assert len(in_turns({"a": lambda: None}, 50, most=0.0)["a"].seconds) == 1


def test_spread():
    assert Timing((1.0, 2.0, 3.0)).median == 2
    assert Timing((1.0, 2.0, 3.0)).spread == 0.25
    assert Timing((5.0,)).spread == 0


def test_blocks_go_by_the_group_of_most_of_their_weights():
    layers = [
        mf.Layer("a.layer.0.x", (2, 2), "text"),
        mf.Layer("a.layer.0.y", (4, 4), "fusion"),
        mf.Layer("b", (1, 1), "c"),
    ]
    assert parts_of(mf.Layout(tuple(layers))) == {"a.layer.0": "fusion"}


def test_a_family_model_with_masks(tiny):
    model = mf.load_model(tiny)
    masks = mf.prune(model, "magnitude", sparsity=0.75).masks[0.75]
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = mf.speed(model, masks, samples=(3,), seconds=0.1)
    assert set(found.forms) == {"dense fp32", "dense bf16", "dense int8", "sparse bf16", "sparse int8"}
    parts = {part for part, _ in found.columns}
    assert parts == {"vision", "text", "fusion", "whole", "decoding step"}
    assert {samples for _, samples in found.columns} == {3}
    assert found.sizes["dense bf16"].memory == memory_of_weights(model) / 2
    assert max(found.sizes["sparse int8"].file, found.sizes["dense bf16"].file) < found.sizes["dense fp32"].file
    assert found.sizes["dense fp32"].load > 0
    assert found.sentence in found.markdown()
    assert json.loads(json.dumps(found.to_dict()))["times"][0]["turns"] >= 1
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}


def test_a_module_of_ones_own_with_a_batch():
    model = two_towers()
    found = mf.speed(
        model, batch=towers_batches(2)[0], samples=(4,), adapter=ADAPTER, seconds=0.1, forms=["dense-fp32"]
    )
    assert found.columns[-1] == ("whole", 4)
    masks = mf.prune(model, "magnitude", sparsity=0.5, adapter=ADAPTER).masks[0.5]
    masks.apply_(model)  # zeros in the model count without masks
    again = mf.speed(model, batch=towers_batches(2)[0], samples=(1,), adapter=ADAPTER, seconds=0.1)
    assert "sparse bf16" in again.forms


def test_other_models_stand_beside():
    config = {"image_size": 16, "patch_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "num_labels": 3}
    big, small = (
        ViTForImageClassification(ViTConfig(hidden_size=32, intermediate_size=size, **config)) for size in (64, 8)
    )
    found = mf.speed(big, samples=(2,), others={"half": small}, forms=["dense fp32"], seconds=0.1, files=False)
    assert found.forms == ["dense fp32", "half"]
    assert found.sizes["half"].memory < found.sizes["dense fp32"].memory
    assert found.sizes["half"].file is None


def test_batches_get_any_number_of_samples():
    batch = {"ids": torch.arange(6).view(3, 2), "scale": torch.tensor(2.0)}
    assert resized(batch, 5)["ids"][:, 0].tolist() == [0, 2, 4, 0, 2]
    assert resized(batch, 2)["ids"].shape == (2, 2)
    assert resized({"a": torch.ones(2), "b": torch.ones(3)}, 2) is None
    assert resized([torch.ones(2)], 2) is None


def test_bad_input():
    model = two_towers()
    with pytest.raises(mf.MultiflowError, match="did you mean 'dense bf16'"):
        mf.speed(model, forms=["dense bf17"])
    with pytest.raises(mf.MultiflowError, match="at least 1"):
        mf.speed(model, samples=(0,))
    with pytest.raises(mf.MultiflowError, match="give a batch"):
        mf.speed(model, adapter=ADAPTER)
    with pytest.raises(mf.MultiflowError, match="does not run on its example inputs"):
        mf.speed(model, adapter=ADAPTER, batch={"pixels": torch.ones(1, 2)})
    with pytest.raises(mf.MultiflowError, match="give a batch"):
        example_batch(nn.Linear(2, 2), 3)


def test_the_command_line(run: Run, tiny: Path):
    assert run("prune", tiny, "--method", "magnitude", "--sparsity", 0.75, "--out", "pruned").code == 0
    words = ("speed", tiny, "--samples", 1, "--seconds", 0.1, "--forms", "dense-fp32", "sparse-int8", "--threads", 1)
    ran = run(*words, "--mask", "pruned/mask-0.75.safetensors", "--beside", tiny, "--out", "speed")
    assert ran.code == 0
    assert "sparse int8" in ran.out
    assert "dense" in ran.out.splitlines()[-2]
    assert {path.name for path in Path("speed").iterdir()} == {"speed.html", "speed.md", "speed.json"}
    assert "<table" in Path("speed/speed.html").read_text()
    assert "dense bf17" in run(*words, "--forms", "dense-bf17").error
    assert "--threads 0" in run(*words[:-1], 0).error
