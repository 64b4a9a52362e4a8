from __future__ import annotations

import re

import pytest
import torch

import multiflow as mf
from multiflow.calibration import sums, sums_size
from multiflow.calibration.sums import Sums, products
from multiflow.models.blip import BlipForPretraining, BlipPretrainingConfig
from multiflow.models.xvlm import XVLMConfig, XVLMForPretraining
from tests.small import ADAPTER, towers_batches, two_towers

CPU = torch.device("cpu")
BOTH = ("input_moment", "input_norm")


def calibrate(*names, batches=None, **options):
    return mf.calibrate(two_towers(), batches or towers_batches(), adapter=ADAPTER, statistics=names, **options)


@pytest.mark.parametrize("tokens", [0, 1, 40])
@pytest.mark.parametrize("width", [3, 8, 16, 21])
def test_products_block_by_block(width, tokens, monkeypatch):
    monkeypatch.setattr(sums, "BLOCK", 8)
    x, total = torch.randn(tokens, width), torch.full((width, width), float("nan"))
    products(x, total)
    torch.testing.assert_close(total, x.T @ x)
    assert torch.equal(total[8:, :8], total[:8, 8:].T)


def test_up_to_the_width_of_a_block_products_are_one_product():
    x, total = torch.randn(30, sums.BLOCK), torch.empty(sums.BLOCK, sums.BLOCK)
    products(x, total)
    assert torch.equal(total, x.T @ x)


@pytest.mark.parametrize("names", [("input_norm",), ("input_moment",), BOTH])
def test_the_bytes_are_those_of_the_tensors(names):
    layout = ADAPTER.layout(two_towers())
    made = Sums(names, layout, CPU)
    tensors = [made._buffers, *made._sums.values(), *made._totals.values()]
    assert sums_size(layout, names) == sum(t.nbytes for of in tensors for t in of.values())


@pytest.mark.parametrize(("model", "config", "size"), [
    (XVLMForPretraining, XVLMConfig, 2_531_524_608),
    (BlipForPretraining, BlipPretrainingConfig, 2_758_017_024),
])  # fmt: skip
def test_the_bytes_of_base_models(model, config, size):
    with torch.device("meta"):
        built = model(config())
    layout = mf.adapter_for(built).layout(built)
    assert sums_size(layout, ["input_moment"]) == size
    assert sums_size(layout, ["input_norm"]) < 4e6


def test_one_pass_gives_what_two_give():
    together, asked = calibrate(*BOTH, batches=iter(towers_batches())), {name: calibrate(name) for name in BOTH}
    assert list(together) == list(BOTH)
    for name in BOTH:
        assert together.counts[name] == asked[name].counts[name]
        for layer, total in together.sums[name].items():
            assert torch.equal(total, asked[name].sums[name][layer])


def test_a_pass_of_two_statistics_goes_on_where_it_was_stopped(tmp_path):
    batches = towers_batches(2, 2, 3, 1, 2)

    def stopping():
        yield from batches[:3]
        raise KeyboardInterrupt

    place, seen = mf.Checkpoint(tmp_path / "calibration", every=2), []
    with pytest.raises(KeyboardInterrupt):
        calibrate(*BOTH, batches=stopping(), checkpoint=place)
    resumed = calibrate(*BOTH, batches=batches, checkpoint=place, progress=lambda what, done, total: seen.append(done))
    assert seen == [3, 4, 5]
    straight = calibrate(*BOTH, batches=batches)
    for name in BOTH:
        assert all(torch.equal(resumed[name][layer], found) for layer, found in straight[name].items())


def test_a_checkpoint_is_of_one_pass(tmp_path):
    with pytest.raises(mf.MultiflowError, match="a checkpoint holds one pass, not input_norm and gradient; leave"):
        calibrate("input_norm", "gradient", checkpoint=tmp_path / "calibration")


def test_an_unknown_statistic_is_told():
    with pytest.raises(mf.MultiflowError, match="unknown statistic 'input_norms'.*did you mean 'input_norm'"):
        calibrate("input_norms")


def test_the_memory_of_the_products_is_stated_before_they_are_measured(caplog):
    caplog.set_level("INFO", logger="multiflow")
    calibrate("input_norm")
    assert not caplog.text
    calibrate("input_moment")
    size = sums_size(ADAPTER.layout(two_towers()), ["input_moment"])
    assert re.search(rf"calibration holds input_moment of 5 layers: {size / 1e6:.1f} MB", caplog.text)


def test_products_that_do_not_fit_are_refused_before_the_first_batch(monkeypatch):
    size = sums_size(ADAPTER.layout(two_towers()), ["input_moment"])
    monkeypatch.setattr(sums, "free_memory", lambda device: size)
    assert calibrate("input_moment").batches == 4
    monkeypatch.setattr(sums, "free_memory", lambda device: size - 1)
    said = (
        r"^the sums for input_moment of 5 layers need 0.0 GiB of memory, and 0.0 GiB are free; leave wide layers dense"
    )

    def never():
        raise AssertionError("a batch was asked for")
        yield

    with pytest.raises(mf.MultiflowError, match=said):
        calibrate("input_moment", batches=never())
    assert calibrate("input_norm").batches == 4
