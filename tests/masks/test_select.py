from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflow.base.types import NofM, PerRow, Unstructured
from multiflow.masks import select
from multiflow.masks.select import _rows_above  # the fast path by itself, against the simple one


def drop_first(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The simple version: sort the rows stably, drop the first ``count`` of each."""
    mask = torch.ones_like(scores, dtype=torch.bool)
    return mask.scatter_(1, scores.argsort(dim=1, stable=True)[:, :count], False)


def tied(rows: int, columns: int, levels: int, seed: int) -> torch.Tensor:
    return torch.randint(0, levels, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([1, 2, 50]), st.floats(0, 1), st.integers(0, 10**6))
def test_unstructured_drops_exactly_the_count_ties_by_position(rows, columns, levels, share, seed):
    scores = tied(rows, columns, levels, seed)
    count = round(share * scores.numel())
    (mask,) = select(scores, [count], Unstructured())
    assert torch.equal(mask, drop_first(scores.view(1, -1), count).view(scores.shape))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([1, 2, 50]), st.floats(0, 1), st.integers(0, 10**6))
def test_per_row_drops_the_same_number_in_every_row(rows, columns, levels, share, seed):
    scores = tied(rows, columns, levels, seed)
    count = round(share * columns)
    (mask,) = select(scores, [count * rows], PerRow())
    assert torch.equal(mask, drop_first(scores, count))
    if 0 < count < columns:  # how it is done off the CPU
        assert torch.equal(_rows_above(scores, count), mask)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 5), (7, 17), (100, 300)]),
    st.sampled_from([1, 3, 50]),
    st.integers(0, 10**6),
)
def test_n_of_m_keeps_n_of_every_m(pattern, levels, seed):
    keep, of = pattern
    scores = tied(6, of * 3, levels, seed)
    (mask,) = select(scores, [scores.numel() // of * (of - keep)], NofM(keep, of))
    assert torch.equal(mask, drop_first(scores.view(-1, of), of - keep).view(scores.shape))


def test_a_layer_without_outputs_has_nothing_to_drop():
    (mask,) = select(torch.ones(0, 4), [0], PerRow())
    assert mask.shape == (0, 4)


def test_several_counts_at_once_are_nested():
    scores = torch.rand(40, 50, generator=torch.Generator().manual_seed(0))
    masks = select(scores, [0, 500, 1999, 2000], Unstructured())
    assert [int((~mask).sum()) for mask in masks] == [0, 500, 1999, 2000]
    assert all(bool((b <= a).all()) for a, b in pairwise(masks))


@pytest.mark.parametrize("pattern", [Unstructured(), PerRow()])
def test_a_layer_larger_than_the_sample(pattern):
    scores = torch.rand(300, 400, generator=torch.Generator().manual_seed(0))
    (mask,) = select(scores, [300 * 252], pattern)
    flat = scores if isinstance(pattern, PerRow) else scores.view(1, -1)
    assert torch.equal(mask, drop_first(flat, 252 if isinstance(pattern, PerRow) else 300 * 252).view(scores.shape))
