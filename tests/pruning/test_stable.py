from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import multiflow as mf
from multiflow.calibration import Doubling
from multiflow.pruning import plan
from tests.small import ADAPTER, towers_batches, two_towers

METHODS = ["multiflow", "wanda", "ria", "snip"]
SPARSITIES = [0.5, 0.75]
UNREACHED = 1.0


def batches(count: int) -> list[dict[str, Tensor]]:
    return towers_batches(*itertools.islice(itertools.cycle((4, 3, 1, 2)), count))


def prune(data: Any, method: str = "multiflow", sparsity: Any = SPARSITIES, **options: Any) -> mf.Result:
    return mf.prune(two_towers(), method, sparsity, data, adapter=ADAPTER, **options)


def share_kept_alike(now: mf.Masks, before: mf.Masks) -> float:
    both = sum(int((now[name] & before[name]).sum()) for name in now)
    return both / sum(int(mask.sum()) for mask in now.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_curve_is_that_of_separate_runs(method: str) -> None:
    data = batches(11)
    result = prune(data, method, until_stable=UNREACHED)
    runs = {n: prune(data[:n], method) for n in (1, 2, 4, 8, 11)}
    assert [(point.batches, point.before) for point in result.curve] == [(2, 1), (4, 2), (8, 4), (11, 8)]
    for point in result.curve:
        of = {s: share_kept_alike(runs[point.batches].masks[s], runs[point.before].masks[s]) for s in SPARSITIES}
        assert point.agreement == of
        assert point.samples == sum(len(batch["ids"]) for batch in data[: point.batches])
    assert any(point.agreement[s] < 1 for point in result.curve for s in SPARSITIES)
    assert result.stable is False
    assert result.masks == runs[11].masks
    assert result.settings["batches"] == 11
    for name, tensor in runs[11].scores.items():
        assert torch.equal(result.scores[name], tensor)


class Counting:
    """Batches that count how many were taken."""

    def __init__(self, data: list[Any]) -> None:
        self.data, self.taken = data, 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.data:
            self.taken += 1
            yield batch


@pytest.mark.parametrize("method", ["multiflow", "snip"])
def test_it_stops_at_the_first_doubling_that_agrees_at_every_sparsity(method: str) -> None:
    data = batches(17)
    curve = prune(data, method, until_stable=UNREACHED).curve
    least = [min(point.agreement.values()) for point in curve]
    for threshold in (least[0], max(least[:-1])):
        expected = next(point.batches for point, low in zip(curve, least, strict=True) if low >= threshold)
        counting = Counting(data)
        result = prune(counting, method, until_stable=threshold)
        assert counting.taken == result.stats.batches == result.settings["batches"] == expected
        assert result.stable
        assert result.curve == tuple(point for point in curve if point.batches <= expected)
        assert result.masks == prune(data[:expected], method).masks
        assert result.masks[0.5].settings["until_stable"] == threshold


def test_one_sparsity_that_does_not_agree_keeps_it_going() -> None:
    data = batches(8)
    first = prune(data, until_stable=UNREACHED).curve[0]
    low, high = sorted(first.agreement.values())
    assert low < high
    easy = max(first.agreement, key=first.agreement.get)
    between = (low + high) / 2
    assert len(prune(data, sparsity=easy, until_stable=between).curve) == 1
    assert len(prune(data, until_stable=between).curve) > 1


def test_agreement_at_the_end_of_the_data_is_no_doubling() -> None:
    data = batches(2)
    data.append(data[0])
    curve = prune(data, until_stable=UNREACHED).curve
    first, last = (min(point.agreement.values()) for point in curve)
    assert first < last
    result = prune(data, until_stable=last)
    assert (result.curve, result.stable) == (curve, False)


def test_one_batch_draws_no_curve() -> None:
    result = prune(batches(1), until_stable=0.1)
    assert (result.curve, result.stable) == ((), False)
    assert result.masks == prune(batches(1)).masks


def test_without_it_there_is_no_curve() -> None:
    result = prune(batches(2))
    assert (result.curve, result.stable) == (None, None)
    assert "curve" not in result.summary()


def test_a_generator_and_the_pattern_and_allocation_asked_for() -> None:
    options: dict[str, Any] = {"sparsity": 0.5, "pattern": "2:4"}
    result = prune((batch for batch in batches(4)), "ria", until_stable=UNREACHED, **options)
    assert result.masks == prune(batches(4), "ria", **options).masks
    assert [point.batches for point in result.curve] == [2, 4]


def test_the_model_is_left_as_it_was() -> None:
    model = two_towers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mf.prune(model, "snip", 0.5, batches(4), adapter=ADAPTER, until_stable=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_progress_tells_of_the_batches_taken() -> None:
    told = []
    prune(batches(4), until_stable=0.1, progress=lambda *step: told.append(step))
    assert told == [("calibrate", 1, 4), ("calibrate", 2, 4)]


def test_layers_that_the_first_batches_do_not_reach() -> None:
    def forward(model: Any, batch: Any) -> Any:
        return model(**batch["in"]) if batch["whole"] else model.text_out(model.text(model.embed(batch["in"]["ids"])))

    adapter = mf.Adapter(groups=ADAPTER.groups, forward=forward)
    data = [{"in": batch, "whole": number >= 3} for number, batch in enumerate(batches(8))]
    result = mf.prune(two_towers(), "multiflow", 0.5, data, adapter=adapter, until_stable=UNREACHED)
    assert [(point.batches, point.before, point.samples) for point in result.curve] == [(8, 4, None)]
    assert result.masks == mf.prune(two_towers(), "multiflow", 0.5, data, adapter=adapter).masks
    with pytest.raises(mf.MultiflowError, match="layers were never reached"):
        mf.prune(two_towers(), "multiflow", 0.5, data[:3], adapter=adapter, until_stable=UNREACHED)


def test_it_is_saved(tmp_path: Path) -> None:
    result = prune(batches(4), until_stable=UNREACHED)
    saved = json.loads((result.save(tmp_path / "out") / "result.json").read_text())
    assert saved["settings"]["until_stable"] == UNREACHED
    assert saved["stable"] is False
    assert [Doubling(**point) for point in saved["curve"]] == [
        Doubling(p.batches, p.before, {"0.5": p.agreement[0.5], "0.75": p.agreement[0.75]}, p.samples)
        for p in result.curve
    ]


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, 99.5, float("nan"), True, "yes"])
def test_thresholds_out_of_range(threshold: Any) -> None:
    with pytest.raises(mf.MultiflowError, match=rf"until_stable {threshold!r} was given; expected .* in \(0, 1\]"):
        prune(batches(2), until_stable=threshold)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("magnitude", "needs no data"),
        ("itersnip", "prunes in steps"),
        ("chita", "prunes in steps"),
        ("tamt", "learns its masks"),
    ],
)
def test_methods_without_a_running_calibration(method: str, why: str) -> None:
    said = f"pruner '{method}' {why}; leave until_stable out, or take one of: multiflow, ria, wanda, snip$"
    with pytest.raises(mf.MultiflowError, match=said):
        prune(batches(2), method, until_stable=0.995)


def test_methods_with_two_statistics() -> None:
    @mf.scorer
    def both(weight: Tensor, *, input_norm: Tensor, gradient: Tensor) -> Tensor:
        return weight.abs() * input_norm * gradient.abs()

    with pytest.raises(mf.MultiflowError, match="a pass .* for each of input_norm, gradient"):
        prune(batches(2), both, until_stable=0.995)


def test_statistics_measured_before() -> None:
    stats = mf.calibrate(two_towers(), batches(2), adapter=ADAPTER)
    with pytest.raises(mf.MultiflowError, match="pass the batches themselves"):
        prune(stats, until_stable=0.995)


def test_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "world", lambda: 2)
    with pytest.raises(mf.MultiflowError, match="works in one process, and there are 2"):
        prune(batches(2), until_stable=0.995)


@pytest.mark.parametrize("data", [[], iter(())])
def test_no_batches(data: Any) -> None:
    with pytest.raises(mf.MultiflowError, match="there are no calibration batches"):
        prune(data, until_stable=0.995)


def test_no_iterable() -> None:
    with pytest.raises(mf.MultiflowError, match="batches is a int; expected an iterable"):
        prune(3, until_stable=0.995)
