"""Models that accelerate keeps on a disk or in CPU memory are pruned as they are."""

import dataclasses
import os
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import disk_offload
from accelerate.utils.offload import OffloadedWeightsLoader
from safetensors.torch import save_file
from torch import nn
from transformers import modeling_utils
from transformers.utils import logging

import multiflow as mf
from multiflow.base.offload import without_mapping
from tests.families.automatic import tiny

KINDS = {
    "llava": "LlavaForConditionalGeneration",
    "clip": "CLIPModel",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "florence2": "Florence2ForConditionalGeneration",
    "siglip": "SiglipModel",
}
SPARSITIES = [0.5, 0.75]


@pytest.fixture(autouse=True)
def _quiet():
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(level)


def dispatched(kind, folder, device_map):
    model = tiny.build(kind, KINDS[kind]).eval()
    model.save_pretrained(folder, max_shard_size="50KB")
    again = type(model).from_pretrained(folder, device_map=device_map, offload_folder=folder / "offload")
    return model, again, [tiny.batch(model), tiny.batch(model, padded=False)]


@pytest.mark.parametrize(
    ("kind", "method"),
    [("llava", "lobs"), ("llava", "multiflow"), ("clip", "wanda"), ("qwen2_5_vl", "lobs"), ("florence2", "wanda")],
)
def test_masks_and_weights_are_those_of_the_plain_model(kind, method, tmp_path):
    plain, model, batches = dispatched(kind, tmp_path, {"": "disk"})
    few = {"rounds": 2, "iterations": 2} if method == "lobs" else {}
    wanted, found = (mf.prune(one, method, SPARSITIES, batches, **few) for one in (plain, model))
    for sparsity in SPARSITIES:
        assert found.masks[sparsity] == wanted.masks[sparsity]
        assert found.masks[sparsity].weights == wanted.masks[sparsity].weights  # their hashes
        if method == "lobs":
            changed = wanted.weights[sparsity]
            assert all(torch.equal(value, changed[name]) for name, value in found.weights[sparsity].items())
    assert all(parameter.is_meta for parameter in model.parameters())


def test_some_layers_in_memory_and_others_not(tmp_path):
    parts = {"model.vision_tower": "disk", "model.multi_modal_projector": "cpu", "model.language_model": "disk"}
    plain, model, batches = dispatched("llava", tmp_path, {**parts, "lm_head": "cpu"})
    wanted, found = (mf.prune(one, "magnitude", SPARSITIES) for one in (plain, model))
    assert all(found.masks[s] == wanted.masks[s] for s in SPARSITIES)
    stats = mf.calibrate(model, batches, statistics=["input_norm", "input_moment"])
    wanted, found = (mf.prune(plain, "ria", SPARSITIES, of) for of in (batches, stats))
    assert all(found.masks[s] == wanted.masks[s] for s in SPARSITIES)


def test_one_weight_at_a_time_is_in_memory(tmp_path, monkeypatch):
    _, model, batches = dispatched("llava", tmp_path, {"": "disk"})
    stats, alive, most = mf.calibrate(model, batches), [], 0
    read = OffloadedWeightsLoader.__getitem__

    def counted(loader, key):
        nonlocal most
        value = read(loader, key)
        alive.append(weakref.ref(value))
        most = max(most, sum(of() is not None for of in alive))
        return value

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counted)
    mf.prune(model, "wanda", SPARSITIES, stats)
    assert len(alive) >= 2 * len(mf.adapter_for(model).layout(model))
    assert most <= 2 * torch.get_num_threads()


@pytest.mark.parametrize("method", ["snip", "chita", "tamt"])
def test_methods_that_need_all_weights_say_so(method, tmp_path):
    _, model, batches = dispatched("clip", tmp_path, {"": "disk"})
    with pytest.raises(mf.MultiflowError, match=f"'{method}' needs all weights in memory"):
        mf.prune(model, method, 0.5, batches)
    with pytest.raises(mf.MultiflowError, match="gradient needs all weights in memory"):
        mf.calibrate(model, batches, statistics="gradient")


def test_weights_that_nobody_brings_are_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(mf.MultiflowError, match="on the meta device, without values"):
        mf.prune(model, "magnitude", 0.5, adapter=mf.Adapter(groups={"all": "."}))


def test_a_forward_that_needs_weights_outside_of_their_modules_says_so(tmp_path):
    _, model, batches = dispatched("siglip", tmp_path, {"": "disk"})
    with pytest.raises(mf.MultiflowError, match="cannot run with these weights offloaded.*--stream"):
        mf.prune(model, "wanda", 0.5, batches)


def test_no_file_of_weights_is_mapped_while_a_model_is_streamed(tmp_path):
    """Under ``ulimit -v`` a model larger than the limit could not be opened else."""
    save_file({"weight": torch.arange(6.0)}, tmp_path / "a.safetensors")
    maps, before = Path("/proc/self/maps"), modeling_utils.safe_open
    if not maps.is_file():
        pytest.skip("only Linux tells what is mapped")
    with without_mapping():
        held = modeling_utils.safe_open(tmp_path / "a.safetensors", framework="pt")
        assert torch.equal(held.get_tensor("weight"), torch.arange(6.0))
        assert "a.safetensors" not in maps.read_text()
    assert modeling_utils.safe_open is before


@pytest.mark.parametrize("kind", ["safetensors", "dat"])
@pytest.mark.parametrize("harm", ["gone", "cut"])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_files_of_weights_that_are_lost_meanwhile_are_a_sentence(kind, harm, method, tmp_path):
    plain, model, batches = dispatched("llava", tmp_path, {"": "disk"})
    if kind == "dat":
        model = cpu_offload_to(plain, tmp_path / "dat")
    for path in (tmp_path / "dat" if kind == "dat" else tmp_path).glob(f"*.{kind}"):
        path.unlink() if harm == "gone" else os.truncate(path, 2)
    with pytest.raises(mf.MultiflowError, match="cannot be read any more .*; put the files back"):
        mf.prune(model, method, 0.5, batches)


def cpu_offload_to(model, folder):
    """The model with its weights in accelerate's own files, one each."""
    return disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def test_an_error_of_a_forward_of_the_user_stays_what_it_is(tmp_path):
    _, model, batches = dispatched("llava", tmp_path, {"": "disk"})

    def forward(model, batch):
        raise OSError("the disk of the user")

    adapter = mf.adapter_for(model)
    with pytest.raises(OSError, match="the disk of the user"):
        mf.prune(model, "wanda", 0.5, batches, adapter=dataclasses.replace(adapter, forward=forward))
