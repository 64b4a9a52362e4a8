"""What pruning gives: masks by sparsity, scores when they are looked up, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import multiflow as mf
from multiflow.pruning.result import changed_weights
from tests.pruning.test_run import prune
from tests.small import chain, every, two_towers


def test_scores_are_those_the_masks_come_from_and_refuse_changed_weights():
    model = two_towers()
    result = prune("ria", 0.5, model)
    for name, scores in result.scores.items():
        kept = result.masks[0.5][name]
        assert scores[kept].min() >= scores[~kept].max()
    result.apply_(model, 0.5)
    with pytest.raises(mf.MultiflowError, match="layer 'text.0' has changed since"):
        result.scores["text.0"]


def test_result_writes_masks_and_a_summary(tmp_path):
    result = prune(sparsity=[0.5, 0.75])
    result.save(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "mask-0.5.safetensors",
        "mask-0.75.safetensors",
        "result.json",
    ]
    assert mf.Masks.load(tmp_path / "run/mask-0.75.safetensors") == result.masks[0.75]
    summary = json.loads((tmp_path / "run/result.json").read_text())
    assert summary["settings"]["method"] == "multiflow"
    assert summary["masks"]["0.75"]["groups"] == result.masks[0.75].group_sparsities()
    assert result.seconds == pytest.approx(sum(result.timings.values()))
    with pytest.raises(mf.MultiflowError, match="already holds a finished run"):
        result.save(tmp_path / "run")


def test_apply_at_a_sparsity_that_was_not_asked_for():
    with pytest.raises(mf.MultiflowError, match="no masks at sparsity 0.6; there are: 0.5"):
        prune().apply_(two_towers(), 0.6)


def nan_scores(weight):
    """Say."""
    return weight / 0 * 0


def test_scores_that_are_not_finite_or_of_the_wrong_shape_name_pruner_and_layer():
    mf.scorer("bad")(nan_scores)
    with pytest.raises(mf.MultiflowError, match="'bad' gave NaN or Inf .*'text.0'"):
        prune("bad")
    mf.scorer("short")(lambda weight: weight[0])
    with pytest.raises(mf.MultiflowError, match=r"\(16,\) for layer 'text.0'; expected \(24, 16\)"):
        prune("short")
    mf.scorer("wants")(lambda weight, *, hessian: weight)
    with pytest.raises(mf.MultiflowError, match="needs 'hessian', .*; there are: input_norm"):
        prune("wants")


def test_sparsities_are_plain_floats_and_close_ones_have_files_of_their_own(tmp_path):
    result = prune("magnitude", [np.float32(0.5), 0, 0.1234567, 0.1234568])
    assert all(type(s) is float for s in result.masks)
    assert len(list(result.save(tmp_path / "run").glob("mask-*"))) == 4


def test_scores_in_half_precision_and_a_pruner_that_changes_its_weight():
    mf.scorer("coarse")(lambda weight: weight.abs().bfloat16())
    assert prune("coarse").masks[0.5].sparsity == 0.5
    mf.scorer("infinite")(lambda weight: weight / 0)
    with pytest.raises(mf.MultiflowError, match="'infinite' gave NaN or Inf .*'text.0'"):
        prune("infinite")
    mf.scorer("impure")(lambda weight: weight.abs_())
    with pytest.raises(mf.MultiflowError, match="'impure' changed .*'text.0' in place"):
        prune("impure")


@pytest.mark.parametrize(
    ("pattern", "digits"), [("1:3", "0.666667"), ("2:3", "0.333333"), ("1:4", "0.75"), ("7:64", "0.890625")]
)
def test_masks_of_a_pattern_have_short_file_names(pattern, digits, tmp_path):
    keep, of = map(int, pattern.split(":"))
    model = chain(of, 4)
    result = mf.prune(model, "magnitude", pattern=pattern, adapter=every(model))
    assert list(result.masks) == [1 - keep / of]
    result.save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [f"mask-{digits}.safetensors", "result.json"]
    masks = mf.Masks.load(tmp_path / f"run/mask-{digits}.safetensors")
    assert (masks, masks.settings["sparsity"]) == (result.masks[1 - keep / of], 1 - keep / of)


def test_changed_weights_of_a_simple_share_are_found_beside_its_masks(tmp_path):
    result = prune("chita", 1 / 3)
    result.save(tmp_path / "run")
    path = tmp_path / "run" / "mask-0.333333.safetensors"
    weights = changed_weights(path, mf.Masks.load(path))
    assert weights is not None
    assert all(torch.equal(weights[name], weight) for name, weight in result.weights[1 / 3].items())


@pytest.mark.parametrize("method", ["magnitude", "multiflow-refit"])
def test_a_result_comes_back_from_its_folder(method, tmp_path):
    result = prune(method, [1 / 3, 0.75])
    again = mf.Result.load(result.save(tmp_path / "run"))
    assert list(again.masks) == list(result.masks)
    one, other = two_towers(), two_towers()
    assert result.apply_(one, 1 / 3) == again.apply_(other, 1 / 3)
    assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())
    assert (again.settings["method"], again.seconds) == (method, result.seconds)
    (tmp_path / "run/mask-0.75.safetensors").unlink()
    with pytest.raises(mf.MultiflowError, match="mask-0.75.safetensors"):
        mf.Result.load(tmp_path / "run")
    with pytest.raises(mf.MultiflowError, match="holds no result that can be read"):
        mf.Result.load(tmp_path)


def test_masks_without_their_changed_weights_are_a_warning(recwarn):
    result, model = prune("multiflow-refit", 0.5), two_towers()
    result.apply_(model, 0.5)
    result.masks[0.5].apply_(model)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="'multiflow-refit' belong to changed weights"):
        result.masks[0.5].apply_(two_towers())


def test_a_result_that_cannot_be_written_to_its_end_leaves_no_file(tmp_path, monkeypatch):
    result = prune("multiflow-refit", 0.5)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiflow.pruning.result.write_facts", full)
    with pytest.raises(OSError, match="No space"):
        result.save(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
