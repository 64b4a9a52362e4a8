from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multiflow.base import order
from multiflow.base.errors import MultiflowError
from multiflow.base.order import smallest


def oracle(tensors: list[Tensor], count: int) -> tuple[int, ...]:
    """The simple version: sort everything stably and see whose values come first."""
    together = torch.cat([t.flatten() for t in tensors])
    owner = torch.repeat_interleave(torch.arange(len(tensors)), torch.tensor([t.numel() for t in tensors]))
    first = owner[together.argsort(stable=True)[:count]]
    return tuple(int((first == i).sum()) for i in range(len(tensors)))


def find(tensors: list[Tensor], counts: list[int]) -> list[order.Cut]:
    return smallest([lambda t=t: t for t in tensors], [t.numel() for t in tensors], counts)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    levels=st.sampled_from([1, 2, 5, 1000]),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    sample=st.sampled_from([2, 8, 1 << 15]),
    seed=st.integers(0, 10**6),
)
def test_equals_sorting_whatever_the_sample(sizes, levels, shares, sample, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randint(0, levels, (n,), generator=generator) / 7 for n in sizes]
    counts = [round(share * sum(sizes)) for share in shares]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "SAMPLE", sample)
        cuts = find(tensors, counts)
    for count, cut in zip(counts, cuts, strict=True):
        assert cut.drops == oracle(tensors, count)


@pytest.mark.parametrize("kind", ["normal", "rounded", "mostly zero", "one outlier"])
def test_equals_sorting_where_the_bracket_is_used(kind):
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(n, generator=generator).abs() for n in (60_000, 300, 20_000)]
    if kind == "rounded":
        tensors = [(t * 10).round() / 10 for t in tensors]
    if kind == "mostly zero":
        tensors = [torch.where(torch.rand(len(t), generator=generator) < 0.7, 0.0, t) for t in tensors]
    if kind == "one outlier":
        tensors[0][17] = 1e30
    total = sum(len(t) for t in tensors)
    counts = [0, 1, total // 3, round(0.63 * total), round(0.9 * total), total - 1, total]
    assert [cut.drops for cut in find(tensors, counts)] == [oracle(tensors, count) for count in counts]


def test_a_bracket_that_misses_is_widened(monkeypatch):
    # a sample that misleads comes by chance alone
    monkeypatch.setattr(order, "_sample", lambda *_: np.full(100, 5.0, np.float32))  # made to happen
    values = torch.linspace(0, 1, 70_000)
    assert find([values], [35_000])[0].value == pytest.approx(0.5, abs=1e-4)


def test_the_border_is_the_value_of_that_rank():
    values = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert [cut.value for cut in find([values], [0, 1, 3, 4])] == [-math.inf, 1.0, 3.0, math.inf]


def test_ties_go_to_the_earlier_tensor():
    assert find([torch.zeros(3), torch.zeros(3)], [4])[0].drops == (3, 1)


def test_passes_are_shared_and_tensors_are_asked_for_anew():
    asked = []

    def tensor() -> Tensor:
        asked.append(1)
        return torch.arange(100_000, dtype=torch.float32)

    smallest([tensor], [100_000], [10_000, 50_000, 90_000])
    assert len(asked) == 2


def test_a_count_beyond_the_values_is_refused():
    with pytest.raises(ValueError, match="between 0 and the 3"):
        find([torch.zeros(3)], [4])


@pytest.mark.parametrize("sizes", [(40, 60), (60_000, 20_000)])
@pytest.mark.parametrize("bad", [1, 20, None])
def test_nan_is_told_at_the_first_look(sizes, bad):
    tensors, asked = [torch.rand(n) for n in sizes], []
    tensors[1][:bad] = math.nan
    with pytest.raises(MultiflowError, match="values to rank are NaN"):
        smallest([lambda t=t: asked.append(1) or t for t in tensors], sizes, [round(0.4 * sum(sizes))])
    assert len(asked) <= 4  # the sample, and one pass
