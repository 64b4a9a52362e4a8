"""Masks, scores and statistics against those of the published implementations (golden data)."""

from __future__ import annotations

import pytest
import torch

import multiflow as mf
from tests import golden_data

METHODS = {
    "omp": ("magnitude", 1),
    "omp_local": ("magnitude-layer", 1),
    "omp_modality": ("magnitude-modality", 1),
    "l2": ("l2", 1),
    "lamp": ("lamp", 1),
    "snip": ("snip", 1),
    "multiflow": ("multiflow", 2),
}
SPARSITIES = [0.63, 0.75, 0.9]


@pytest.mark.parametrize("family", ["xvlm", "dino"])
@pytest.mark.parametrize("tag", METHODS)
def test_masks_equal_the_published_ones(family, tag):
    model = golden_data.model(family)
    names = mf.original_names(model)
    method, tolerance = METHODS[tag]
    result = mf.prune(model, method, SPARSITIES, golden_data.batches(family)[:4])
    for sparsity, masks in result.masks.items():
        expected = golden_data.masks(family)[tag][sparsity]
        assert {names[name] for name in masks} == set(expected)
        for name, mask in masks.items():
            assert int((mask != expected[names[name]]).sum()) <= tolerance, (sparsity, name)


@pytest.mark.parametrize("family", ["xvlm", "dino"])
def test_statistics_equal_the_published_ones_up_to_a_factor_per_layer(family):
    model = golden_data.model(family)
    names = mf.original_names(model)
    stats = mf.calibrate(model, golden_data.batches(family)[:4])["input_norm"]
    values = golden_data.tensors(family, "values")
    for name, norm in stats.items():
        ratio = norm.double().square() / values[f"multiflow_input_sqnorm/{names[name]}"].double()
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("family", "tag"),
    [
        ("xvlm", "multiflow"),
        ("xvlm", "lamp"),
        ("xvlm", "snip"),
        ("dino", "snip"),
        ("dino", "multiflow"),
        ("dino", "l2"),
    ],
)
def test_scores_equal_the_published_ones_up_to_a_factor_per_layer(family, tag):
    model = golden_data.model(family)
    names = mf.original_names(model)
    result = mf.prune(model, METHODS[tag][0], 0.5, golden_data.batches(family)[:4])
    values = golden_data.tensors(family, "values")
    for name, scores in result.scores.items():
        expected = values[f"{tag}/{names[name]}"].double()
        factor = scores.double().sum() / expected.sum()
        torch.testing.assert_close(scores.double(), expected * factor, rtol=1e-3, atol=1e-5 * float(scores.max()))
