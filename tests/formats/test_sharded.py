"""A pruned model written shard by shard is the one that is written whole."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import multiflow as mf
from multiflow.formats.sharded import apply_to_shards
from tests.families.automatic import tiny
from tests.pruning.stream.models import FEW, opened


@pytest.mark.parametrize("method", ["wanda", "lobs"])
def test_the_folder_is_that_of_the_whole_model(method, tmp_path, run):
    model, streamed, batches = opened("llava", tmp_path)
    result = mf.prune_streamed(streamed, method, [0.5, 0.75], batches, folder=tmp_path / "run", **FEW.get(method, {}))
    (tmp_path / "model" / "notes.txt").write_text("stays")
    ran = run("apply", tmp_path / "model", tmp_path / "run" / "mask-0.75.safetensors", "--out", "out", "--stream")
    assert ran.code == 0, ran.err
    assert "75.00 %" in ran.out
    found = mf.load_model("out")
    assert result.masks[0.75].is_applied(found)
    result.apply_(model, 0.75)
    for name, value in model.state_dict().items():
        assert value.equal(found.state_dict()[name]), name
    index = "model.safetensors.index.json"
    for path in (tmp_path / "model").glob("*.safetensors"):
        with safe_open(path, "pt") as ours, safe_open(f"out/{path.name}", "pt") as theirs:
            assert ours.metadata() == theirs.metadata()
        assert load_file(path).keys() == load_file(f"out/{path.name}").keys()
    assert json.loads((tmp_path / "model" / index).read_text()) == json.loads((tmp_path / "out" / index).read_text())
    assert (tmp_path / "out" / "notes.txt").read_text() == "stays"


def test_masks_of_another_model_are_refused(tmp_path, run, tiny_blip):
    mf.prune(mf.load_model(tiny_blip), "magnitude", 0.5).save(tmp_path / "masks")
    opened("clip", tmp_path)
    ran = run("apply", tmp_path / "model", tmp_path / "masks" / "mask-0.5.safetensors", "--out", "out", "--stream")
    assert "the masks are those of another model" in ran.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("harm", ["gone", "cut", "another"])
def test_a_shard_that_is_lost_meanwhile_is_a_sentence(harm, tmp_path, monkeypatch):
    _, streamed, batches = opened("llava", tmp_path)
    result = mf.prune_streamed(streamed, "magnitude", 0.5, batches, folder=tmp_path / "run")
    path = max((tmp_path / "model").glob("*.safetensors"))
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.write_bytes(b"another file")
    (tmp_path / "out").mkdir()
    with pytest.raises(mf.MultiflowError, match=path.name):
        apply_to_shards(streamed, result.masks[0.5], None, tmp_path / "out")
    assert not (tmp_path / "out" / path.name).exists()


def test_weights_that_are_no_safetensors_are_not_written_in_pieces(run, tmp_path):
    model = tiny.build("clip", "CLIPModel")
    (folder := tmp_path / "model").mkdir()
    model.config.architectures = ["CLIPModel"]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    mf.prune(mf.load_model(folder), "magnitude", 0.5).masks[0.5].save(tmp_path / "half.safetensors")
    ran = run("apply", folder, tmp_path / "half.safetensors", "--out", "out", "--stream")
    assert "or not as safetensors" in ran.error
    assert not (tmp_path / "out").exists()
    assert run("apply", folder, tmp_path / "half.safetensors", "--out", "out").code == 0
