"""What is found block by block is what is found in memory."""

import pytest
import torch

import multiflow as mf
from tests.pruning.stream.models import FEW, SPARSITIES, check_same, opened

pytestmark = pytest.mark.filterwarnings("ignore:.*are no linear layers and stay dense:UserWarning")


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llava", "lobs"),
        ("llava", "multiflow"),
        ("clip", "wanda"),
        ("qwen2_5_vl", "wanda"),
        ("qwen2_5_vl", "lobs"),
        ("florence2", "multiflow"),
        ("aya_vision", "wanda"),  # collects the states of its vision tower by hooks
    ],
)
def test_masks_and_weights_are_those_of_the_run_in_memory(kind, method, tmp_path):
    model, streamed, batches = opened(kind, tmp_path)
    few = FEW.get(method, {})
    wanted = mf.prune(model, method, SPARSITIES, batches, **few)
    found = mf.prune_streamed(streamed, method, SPARSITIES, batches, folder=tmp_path / "run", **few)
    check_same(found, wanted)
    check_same(mf.Result.load(tmp_path / "run"), wanted)  # what was written
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if "." in path.name[1:]) == sorted(
        ["result.json", *(f"mask-{s:g}.safetensors" for s in SPARSITIES)]
        + [f"weights-{s:g}.safetensors" for s in SPARSITIES if wanted.weights]
    )
    assert all(parameter.is_meta for parameter in streamed.parameters())
    if kind == "aya_vision":  # accelerate cannot run it with all of its weights on a disk
        return
    with torch.no_grad():  # the model is as it was, and still runs
        assert torch.equal(next(iter(streamed(**batches[0]).values())), next(iter(model(**batches[0]).values())))


def test_a_tower_that_is_called_twice(tmp_path):
    model, streamed, batches = opened("blip-2", tmp_path)
    wanted = mf.prune(model, "wanda", SPARSITIES, batches)
    found = mf.prune_streamed(streamed, "wanda", SPARSITIES, batches, folder=tmp_path / "run")
    assert all(found.masks[s] == wanted.masks[s] for s in SPARSITIES)
    assert found.stats.counts == wanted.stats.counts
    with pytest.raises(mf.MultiflowError, match="is called again after all data have passed it"):
        mf.prune_streamed(streamed, "lobs", 0.5, batches, folder=tmp_path / "other", **FEW["lobs"])


def test_bfloat16_and_a_pattern(tmp_path):
    model, streamed, batches = opened("llava", tmp_path, torch.bfloat16)
    wanted = mf.prune(model, "sparsegpt", batches=batches, pattern="2:4")
    found = mf.prune_streamed(streamed, "sparsegpt", batches=batches, pattern="2:4", folder=tmp_path / "run")
    check_same(found, wanted)
    assert {weight.dtype for weight in found.weights[0.5].values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("method", "allocation"), [("wanda", "global"), ("multiflow", "owl"), ("magnitude", None), ("random", None)]
)
def test_budgets_that_need_all_layers(method, allocation, tmp_path):
    model, streamed, batches = opened("llava", tmp_path)
    pattern = "unstructured" if allocation else None
    options = {"allocation": allocation, "pattern": pattern, "seed": 3}
    wanted = mf.prune(model, method, SPARSITIES, batches, **options)
    found = mf.prune_streamed(streamed, method, SPARSITIES, batches, folder=tmp_path / "run", **options)
    assert all(found.masks[s] == wanted.masks[s] for s in SPARSITIES)
    name = next(iter(wanted.scores))
    assert torch.equal(found.scores[name], wanted.scores[name])


@pytest.mark.parametrize("method", ["wanda", "lobs"])
def test_the_pruned_stream_is_that_of_blocks_pruned_one_after_the_other(method, tmp_path):
    model, streamed, batches = opened("llava", tmp_path)
    few = FEW.get(method, {})
    found = mf.prune_streamed(streamed, method, SPARSITIES, batches, folder=tmp_path / "run", sequential=True, **few)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for sparsity in SPARSITIES:
        model.load_state_dict(before)
        pruned = []
        for block in ("vision_tower", "multi_modal_projector", "language_model.layers.0", "language_model.layers.1"):
            result = mf.prune(model, method, sparsity, batches, **few)  # one block of it counts
            masks = result.masks[sparsity]
            layers = tuple(layer for layer in masks.layout.layers if block in layer.name)
            for name in (layer.name for layer in layers):
                assert torch.equal(found.masks[sparsity][name], masks[name]), name
                if result.weights:
                    assert torch.equal(found.weights[sparsity][name], result.weights[sparsity][name]), name
            own = mf.Masks.from_tensors(mf.Layout(layers), {layer.name: masks[layer.name] for layer in layers})
            changed = {layer.name: result.weights[sparsity][layer.name] for layer in layers} if result.weights else None
            own.apply_(model, changed)
            pruned += own
        assert set(pruned) == set(found.masks[sparsity])
    model.load_state_dict(before)
    assert found.masks[0.75] != mf.prune(model, method, 0.75, batches, **few).masks[0.75]
