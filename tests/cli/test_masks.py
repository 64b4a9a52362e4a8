"""Masks of the original release on the command line: `multiflow show` and `multiflow apply`, on the golden models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import multiflow as mf
from multiflow.cli import settings as cli_settings
from multiflow.families.opening import load_model
from tests import golden_data
from tests.cli.conftest import Run
from tests.cli.test_show import cells

GROUPS = {"xvlm": ["vision", "text", "fusion"], "dino": ["vision"], "blip": ["vision", "text"]}
TAGS = {"xvlm": "multiflow", "dino": "multiflow", "blip": "multiflow_tied"}


def options(family: str) -> list[object]:
    return ["--family", family, "--config", golden_data.FOLDER / family / "config.json"]


def weights(family: str) -> Path:
    return golden_data.FOLDER / family / "weights.safetensors"


def published(family: str, tag: str, sparsity: float = 0.75) -> dict[str, Tensor]:
    """Masks as the release stores them."""
    masks = golden_data.masks(family)[tag][sparsity]
    return {f"{name}_pruning_mask": mask.float() for name, mask in masks.items()}


def renamed(family: str, tag: str, folder: Path) -> Path:
    """A file of our own with the masks of the release."""
    torch.save(published(family, tag), folder / "for_ours.pth")
    model = golden_data.model(family)
    masks = mf.Masks.load(folder / "for_ours.pth").rename(mf.adapter_for(model).layout(model), mf.original_names(model))
    return masks.save(folder / f"{tag}.safetensors")


def with_decoder_names(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the masks of BLIP's shared weights under their other name."""
    layers = mf.adapter_for(model := golden_data.model("blip")).layout(model).layers
    names = mf.original_names(model)
    shared = {layer.aliases[0]: names[layer.name] for layer in layers if layer.aliases}
    return masks | {f"{alias}.weight_pruning_mask": masks[f"{name}_pruning_mask"] for alias, name in shared.items()}


@pytest.mark.parametrize("family", GROUPS)
def test_apply(run: Run, tmp_path: Path, family: str) -> None:
    masks = published(family, TAGS[family])
    biases = {name.replace("weight_", "bias_"): torch.ones(len(mask)) for name, mask in masks.items()}
    torch.save(masks | biases, "masks.pth")
    ran = run("apply", weights(family), "masks.pth", "--out", "pruned", *options(family))
    assert (ran.code, ran.err) == (0, "")
    dropped = sum(int((mask == 0).sum()) for mask in masks.values())
    size = sum(mask.numel() for mask in masks.values())
    assert f"{dropped:,} of {size:,} prunable weights zero ({100 * dropped / size:.2f} %; vision " in ran.out

    before, after = golden_data.model(family), load_model(tmp_path / "pruned")
    for layer, name in mf.original_names(before).items():
        kept = masks[f"{name}_pruning_mask"] == 1
        weight = after.get_submodule(layer).weight
        assert torch.equal(weight, torch.where(kept, before.get_submodule(layer).weight, 0.0))


def test_apply_refuses_masks_of_another_model(run: Run, tmp_path: Path) -> None:
    torch.save(published("xvlm", "multiflow"), "masks.pth")
    error = run("apply", weights("dino"), "masks.pth", "--out", "pruned", *options("dino")).error
    assert error == (
        "the masks cover other layers than the model: 'text_encoder.bert.encoder.layer.0.attention.output.dense.weight'"
        " (and 49 more) is masked but no prunable layer, 'vit.encoder.layer.0.attention.attention.query.weight' (and 17"
        " more) is prunable but has no mask; use the model that they were made for"
    )
    assert os.listdir(tmp_path) == ["masks.pth"]


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_code_is_refused_before_the_model_is_loaded(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_settings, "open_model", lambda *args: pytest.fail("loaded"))
    torch.save(published("dino", "snip") | {"x.weight_pruning_mask": Malicious()}, "masks.pth")
    for words in (["apply", weights("dino"), "masks.pth", "--out", "pruned"], ["show", "masks.pth"]):
        error = run(*words).error
        assert error.startswith("mask file 'masks.pth' is a pickle that wants to run ")
        assert "mkdir, and only tensors are read" in error
    assert os.listdir(tmp_path) == ["masks.pth"]


def test_show_without_a_model(run: Run) -> None:
    masks = published("blip", "snip")
    torch.save(masks, "masks.pth")
    ran = run("show", "masks.pth")
    assert (ran.code, ran.err) == (0, "")
    rows = cells(ran.out)
    for name, mask in masks.items():
        layer, dropped = name.removesuffix(".weight_pruning_mask"), int((mask == 0).sum())
        row = next(row for row in rows if row[:1] == [layer])
        share = f"{100 * dropped / mask.numel():.2f} %"
        assert row[1:5] == [layer.partition(".")[0], f"{dropped:,}", f"{mask.numel():,}", share]
    assert {"visual_encoder", "text_encoder", "text_decoder", "in all"} <= {row[0] for row in rows if row}
    assert ["format", "of the original release"] in rows


def test_show_with_the_model(run: Run) -> None:
    torch.save(with_decoder_names(published("blip", "multiflow_tied")), "masks.pth")
    rows = cells(run("show", "masks.pth", "--model", weights("blip"), *options("blip")).out)
    size = sum(mask.numel() for mask in published("blip", "multiflow_tied").values())  # shared weights count once
    assert [row[0] for row in rows if row[3:4] == ["75.00 %"]] == ["vision", "text", "in all"]
    assert next(row for row in rows if row[:1] == ["in all"])[2] == f"{size:,}"


@pytest.mark.parametrize("family", GROUPS)
@pytest.mark.parametrize("first", ["release", "ours"])
def test_compare_with_a_file_of_our_own(run: Run, tmp_path: Path, family: str, first: str) -> None:
    ours = renamed(family, "omp", tmp_path)
    torch.save(published(family, "snip"), "snip.pth")
    paths = ["snip.pth", ours] if first == "release" else [ours, "snip.pth"]
    ran = run("show", *paths)
    assert (ran.code, ran.err) == (0, "")
    rows = cells(ran.out)
    one, other = (golden_data.masks(family)[tag][0.75] for tag in ("snip", "omp"))
    for layer, name in mf.original_names(golden_data.model(family)).items():
        row = next(row for row in rows if row[:1] == [layer])
        same = (one[name] == other[name]).double().mean()
        shares = [f"{100 * (~masks[name]).double().mean():.2f} %" for masks in (one, other)]
        assert row[1] == f"{100 * same:.2f} %"
        assert row[3:5] == (shares if first == "release" else shares[::-1])
    listed = [row[0] for row in rows if row[1:2] and row[1].endswith("%")]
    assert listed[-len(GROUPS[family]) - 1 :] == [*GROUPS[family], "in all"]


def test_compare_two_files_of_the_release(run: Run) -> None:
    snip = published("blip", "snip")
    torch.save(published("blip", "omp"), "omp.pth")
    torch.save(dict(reversed(snip.items())), "snip.pth")  # in another order
    rows = cells(run("show", "omp.pth", "snip.pth").out)
    assert {"visual_encoder", "text_encoder", "text_decoder"} <= {row[0] for row in rows if row}
    same = sum(int((mask == published("blip", "omp")[name]).sum()) for name, mask in snip.items())
    everything = next(row for row in rows if row[:1] == ["in all"])
    assert everything[1] == f"{100 * same / sum(mask.numel() for mask in snip.values()):.2f} %"

    torch.save(with_decoder_names(snip), "snip.pth")  # shared weights under both of their names: the model tells
    error = run("show", "omp.pth", "snip.pth").error
    assert "the masks cover other layers" in error
    assert error.endswith("(without --model, layers go by their names in the two files)")
    rows = cells(run("show", "omp.pth", "snip.pth", "--model", weights("blip"), *options("blip")).out)
    assert [row for row in rows if row[:1] == ["in all"]] == [everything]
    assert {"vision", "text"} <= {row[0] for row in rows if row}


def test_masks_of_our_own_without_names_need_the_model(run: Run, tmp_path: Path) -> None:
    ours = mf.Masks.load(renamed("dino", "omp", tmp_path))
    mf.Masks(ours.layout, ours.packed).save(tmp_path / "nameless.safetensors")
    torch.save(published("dino", "omp"), "omp.pth")
    assert "without --model" in run("show", "nameless.safetensors", "omp.pth").error
    rows = cells(run("show", "nameless.safetensors", "omp.pth", "--model", weights("dino"), *options("dino")).out)
    assert next(row for row in rows if row[:1] == ["vision"])[1] == "100.00 %"


def test_a_checkpoint_that_is_a_torch_file_is_a_model(run: Run) -> None:
    torch.save(golden_data.tensors("dino", "weights"), "model.pth")
    assert "ViTForImageClassification" in run("show", "model.pth", *options("dino")).out
