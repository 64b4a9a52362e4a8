"""How a model is walked: one block at a time in memory, on after a kill, and what is refused."""

import json
import os

import pytest
import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from torch import nn

import multiflow as mf
from tests.pruning.stream.models import FEW, SPARSITIES, check_same, opened


class Killed(BaseException):
    pass


def reads_of(monkeypatch):
    """Record the names of all weights that are read from files."""
    names, read = [], OffloadedWeightsLoader.__getitem__

    def noted(loader, key):
        names.append(key)
        return read(loader, key)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", noted)
    return names


def test_each_weight_is_read_once_and_one_block_is_in_memory(tmp_path, monkeypatch):
    _, model, batches = opened("llava", tmp_path)
    layers, most = list(mf.adapter_for(model).layout(model)), set()

    def weigh(*_):
        """Note the blocks of which weights are in memory: what stands in for others has the memory of one number."""
        here = {
            name.partition(".layers.")[0] + name.partition(".layers.")[2][:1]
            for name, weight in model.named_parameters()
            if ".layers." in name and weight.untyped_storage().nbytes() >= 4 * weight.numel()
        }
        most.add(len(here))

    names = reads_of(monkeypatch)
    for layer in layers:
        model.get_submodule(layer).register_forward_pre_hook(weigh)
    mf.prune_streamed(model, "wanda", SPARSITIES, batches, folder=tmp_path / "run")
    assert most == {0, 1}  # none while the connector runs
    assert {names.count(f"{layer}.weight") for layer in layers} == {1}


@pytest.mark.parametrize(("method", "sequential"), [("lobs", False), ("wanda", True)])
def test_a_killed_run_goes_on_with_the_block_it_was_at(method, sequential, tmp_path, monkeypatch):
    _, model, batches = opened("llava", tmp_path)
    options = {**FEW.get(method, {}), "sequential": sequential}
    wanted = mf.prune_streamed(model, method, SPARSITIES, batches, folder=tmp_path / "whole", **options)
    block, calls = "model.language_model.layers.1.mlp.up_proj", 0

    def die(*_):
        nonlocal calls
        calls += 1
        if calls == 2:  # in the middle of a block, of the second batch
            raise Killed

    hook = model.get_submodule(block).register_forward_pre_hook(die)
    with pytest.raises(Killed):
        mf.prune_streamed(model, method, SPARSITIES, batches, folder=tmp_path / "run", **options)
    hook.remove()
    assert (tmp_path / "run" / "run.json").is_file()
    names = reads_of(monkeypatch)
    gone = iter(())  # the batches are not looked at again
    found = mf.prune_streamed(model, method, SPARSITIES, gone, folder=tmp_path / "run", **options)
    check_same(found, wanted)
    vision = [name for name in names if "vision_tower.encoder.layers.0.mlp" in name]
    assert bool(vision) == sequential  # of the second sparsity
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("sequential", [False, True])
def test_a_run_that_is_killed_after_every_block_goes_on(sequential, tmp_path, monkeypatch):
    """Once behind each block, also behind the last one, when records lost their bytes; and while they lose them."""
    _, model, batches = opened("llava", tmp_path)
    wanted = mf.prune_streamed(model, "wanda", 0.5, batches, folder=tmp_path / "whole", sequential=sequential)
    truncate, kills = os.truncate, 0

    def die(*_):
        raise Killed

    def die_behind(*how):
        truncate(*how)
        raise Killed

    while True:
        if kills % 2:
            monkeypatch.setattr(os, "truncate", die_behind)
        try:
            found = mf.prune_streamed(
                model, "wanda", 0.5, batches, folder=tmp_path / "run", sequential=sequential, progress=die
            )
            break
        except Killed:
            kills += 1
            monkeypatch.setattr(os, "truncate", truncate)
    assert kills >= 4
    check_same(found, wanted)


def test_a_run_goes_on_with_its_own_settings_alone(tmp_path):
    _, model, batches = opened("llava", tmp_path)

    def die(what, done, total):
        raise Killed

    with pytest.raises(Killed):
        mf.prune_streamed(model, "wanda", 0.5, batches, folder=tmp_path / "run", progress=die)
    with pytest.raises(mf.MultiflowError, match=r"belongs to a run with other settings: sparsity"):
        mf.prune_streamed(model, "wanda", 0.6, batches, folder=tmp_path / "run")
    journal = tmp_path / "run" / "stream" / "all" / "walk.json"
    journal.write_text(json.dumps({**json.loads(journal.read_text()), "done": [999]}))
    with pytest.raises(mf.MultiflowError, match=r"walk.json' was altered.*begin afresh"):
        mf.prune_streamed(model, "wanda", 0.5, batches, folder=tmp_path / "run")


def test_activations_go_when_nobody_needs_them(tmp_path):
    _, model, batches = opened("llava", tmp_path)
    big = [{**batch, "pixel_values": batch["pixel_values"].repeat(20, 1, 1, 1)} for batch in batches]
    big = [{n: v if n == "pixel_values" else v.repeat(20, 1) for n, v in batch.items()} for batch in big]
    sizes = []

    def weigh(what, done, total):
        folder = tmp_path / "run" / "stream" / "all"
        sizes.append(sum(path.stat().st_size for path in folder.rglob("*.act") if "batch" not in path.name))

    mf.prune_streamed(model, "wanda", 0.5, big, folder=tmp_path / "run", progress=weigh)
    one = 20 * sum(batch["input_ids"].numel() for batch in batches) * model.config.text_config.hidden_size * 4
    assert len(sizes) >= 4
    assert max(sizes) <= 6 * one  # the embeddings, what the blocks give, and the vision tower's states
    assert not (tmp_path / "run" / "stream").exists()


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("snip", {}, "runs the model backwards"),
        ("itersnip", {}, "runs the model backwards"),
        ("chita", {}, "runs the model backwards"),
        ("lobs", {"allocation": "owl"}, "'owl' needs the inputs of all layers before the first one is pruned"),
        (
            "wanda",
            {"allocation": "global", "pattern": "unstructured", "sequential": True},
            "on the pruned stream each block is pruned when it comes",
        ),
        ("wanda", {"allocation": "ecoflap", "pattern": "unstructured"}, "needs gradients"),
    ],
)
def test_what_needs_the_whole_model_is_refused(method, options, said, tmp_path):
    _, model, batches = opened("llava", tmp_path)
    with pytest.raises(mf.MultiflowError, match=said):
        mf.prune_streamed(model, method, 0.5, batches, folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_model_without_blocks_is_refused(tmp_path):
    from accelerate import disk_offload

    model = nn.Module()
    model.one, model.two = nn.Linear(4, 4), nn.Linear(4, 4)
    model.forward = lambda x: model.two(model.one(x))
    disk_offload(model, str(tmp_path / "offload"), execution_device=torch.device("cpu"))
    with pytest.raises(mf.MultiflowError, match="it names no blocks"):
        mf.prune_streamed(
            model, "wanda", 0.5, [torch.ones(2, 4)], folder=tmp_path / "run", adapter=mf.Adapter(groups={"all": "."})
        )


def test_batches_of_text_alone_are_refused_at_the_first_block_of_text(tmp_path):
    _, model, _ = opened("llava", tmp_path)
    ids = torch.randint(1, 20, (2, 7))
    done = []
    with pytest.raises(mf.MultiflowError, match="no batch holds what 'vision' takes in"):
        mf.prune_streamed(
            model, "wanda", 0.5, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}],
            folder=tmp_path / "run", progress=lambda *step: done.append(step),
        )  # fmt: skip
    assert not done


def test_what_cannot_be_kept_on_the_disk_is_said(tmp_path):
    _, model, batches = opened("llava", tmp_path)
    with pytest.raises(mf.MultiflowError, match="batch 1 holds a set, which cannot be kept on the disk"):
        mf.prune_streamed(model, "wanda", 0.5, [{**batches[0], "more": {1}}], folder=tmp_path / "run")


def test_folders_that_cannot_be_streamed(tmp_path):
    (tmp_path / "model.pth").touch()
    with pytest.raises(mf.MultiflowError, match="is one file, and a model that is streamed is a Hugging Face folder"):
        mf.open_streamed(tmp_path / "model.pth", tmp_path / "offload")
    with pytest.raises(mf.MultiflowError, match="holds no config.json"):
        (tmp_path / "empty").mkdir()
        mf.open_streamed(tmp_path / "empty", tmp_path / "offload")
