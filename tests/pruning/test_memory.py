"""What methods hold in the size of the model is said before the first batch, and refused where it is not free."""

from __future__ import annotations

import pytest

import multiflow as mf
from multiflow.pruning import stages
from tests.small import ADAPTER, QUICK, towers_batches, two_towers

SIZE = ADAPTER.layout(two_towers()).size


def said(caplog, method, batches=None, **options):
    """The announcements of a run up to its first batch, each with its bytes."""

    def watched():
        before.extend(record.getMessage() for record in caplog.records)
        yield from towers_batches() * 3

    before = []
    caplog.set_level("INFO", logger="multiflow")
    given = watched() if batches is None else batches
    mf.prune(two_towers(), method, 0.5, given, adapter=ADAPTER, **QUICK.get(method, {}), **options)
    return before or [record.getMessage() for record in caplog.records]


def megabytes(size):
    return f"{size / 1e6:.1f} MB"


@pytest.mark.parametrize(("method", "expected"), [
    ("snip", [f"snip holds the gradients of 5 layers: {megabytes(4 * SIZE)}"]),
    ("itersnip", [
        f"itersnip holds the gradients of 5 layers: {megabytes(4 * SIZE)}",
        f"itersnip works on a masked copy of the weights: {megabytes(4 * SIZE)}",
    ]),
    ("tamt", [f"tamt trains scores, which with masked weights and their gradients take up to: {megabytes(28 * SIZE)}"]),
    ("wanda", []),
])  # fmt: skip
def test_what_is_held_is_said_before_the_first_batch(method, expected, caplog):
    assert said(caplog, method) == expected


def test_a_global_ranking_holds_the_scores(caplog):
    expected = [f"ria ranks all layers together and holds their scores: {megabytes(4 * SIZE)}"]
    assert said(caplog, "ria", allocation="global") == expected


def test_gradients_that_are_there_already_are_not_announced(caplog):
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics="gradient")
    assert said(caplog, "snip", stats) == []


def test_calibration_announces_the_gradient_alone(caplog):
    caplog.set_level("INFO", logger="multiflow")
    mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics=["input_norm", "gradient"])
    expected = [f"calibration holds the gradients of 5 layers: {megabytes(4 * SIZE)}"]
    assert [record.getMessage() for record in caplog.records] == expected


@pytest.mark.parametrize(("method", "what"), [
    ("snip", "snip holds the gradients of 5 layers, which need"),
    ("magnitude", "magnitude ranks all layers together and holds their scores, which need"),
])  # fmt: skip
def test_more_than_is_free_is_refused(method, what, monkeypatch):
    def never():
        raise AssertionError("a batch was asked for")
        yield

    monkeypatch.setattr(stages, "free_memory", lambda device: 4 * SIZE - 1)
    with pytest.raises(mf.MultiflowError, match=f"^{what} .* are free; leave layers dense"):
        mf.prune(two_towers(), method, 0.5, never(), adapter=ADAPTER)
    monkeypatch.setattr(stages, "free_memory", lambda device: 4 * SIZE)
    assert mf.prune(two_towers(), method, 0.5, towers_batches(), adapter=ADAPTER).masks[0.5].sparsity == 0.5
