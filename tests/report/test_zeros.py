from __future__ import annotations

import pytest

from multiflow.report.zeros import collapsed, groups, spreads, uneven

from .bench.conftest import LAYERS, make_pruning


def spread_of(*prunings):
    return spreads(prunings, ["xvlm-shapes"], ["multiflow", "wanda"])


def test_shares_are_means_over_seeds_weighted_by_size():
    one, other = make_pruning(seed=0), make_pruning(seed=1)
    other.zeros[0.9][0] = 0
    spread = spread_of(one, other)[-1]
    assert (spread.sparsity, spread.seeds) == (0.9, (0, 1))
    assert spread.layers == pytest.approx(dict(zip([name for name, *_ in LAYERS], (0.45, 0.9, 0.9), strict=True)))
    assert spread.groups == pytest.approx({"vision": (45 + 90) / 200, "text": 0.9})


def test_collapse_is_named():
    found = spread_of(make_pruning(text=1.0), make_pruning("wanda"))
    assert groups(found) == ["vision", "text"]
    assert collapsed(found) == [
        ("xvlm-shapes", "multiflow", "at 90\N{NO-BREAK SPACE}% all of text; one layer of 3 (text.layer.0.q)")
    ]


def test_a_model_with_another_layout_is_not_averaged_in():
    old = make_pruning(seed=0)
    new = make_pruning(seed=1, text=1.0)
    changed = type(old)(**{**vars(old), "layers": LAYERS[:2], "zeros": {0.9: [0, 0]}})
    spread = spread_of(changed, new)[-1]
    assert spread.seeds == (1,)
    assert spread.groups["text"] == 1.0


def test_who_treats_groups_unlike_is_named():
    found = spread_of(make_pruning(text=0.95), make_pruning("wanda"))
    assert uneven(found) == [
        "On xvlm-shapes at 90\N{NO-BREAK SPACE}% zeros, 1 of 2 pruners spread the zeros over the groups within 1 point "
        "of each other; unevenly multiflow (vision 90.0\N{NO-BREAK SPACE}%, text 95.0\N{NO-BREAK SPACE}%)."
    ]
    (even,) = uneven(spread_of(make_pruning(), make_pruning("wanda")))
    assert "2 of 2 pruners" in even
    assert "unevenly" not in even
