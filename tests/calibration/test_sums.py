from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.calibration import inputs, sums_size
from multiflow.calibration.inputs import Sums, check_sums_fit, products
from multiflow.families.blip.models import BlipForPretraining, BlipPretrainingConfig
from multiflow.families.xvlm.models import XVLMConfig, XVLMForPretraining
from tests.small import ADAPTER, chain, every, towers_batches, two_towers

CPU, META = torch.device("cpu"), torch.device("meta")
BOTH = ("input_moment", "input_norm")


def calibrate(*names, batches=None, **options):
    return mf.calibrate(two_towers(), batches or towers_batches(), adapter=ADAPTER, statistics=names, **options)


@pytest.mark.parametrize("tokens", [0, 1, 40])
@pytest.mark.parametrize("width", [3, 8, 16, 21])
def test_products_block_by_block(width, tokens, monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK", 8)
    x, total = torch.randn(tokens, width), torch.full((width, width), float("nan"))
    products(x, total)
    torch.testing.assert_close(total, x.T @ x)
    assert torch.equal(total[8:, :8], total[:8, 8:].T)


def test_up_to_the_width_of_a_block_products_are_one_product():
    x, total = torch.randn(30, inputs.BLOCK), torch.empty(inputs.BLOCK, inputs.BLOCK)
    products(x, total)
    assert torch.equal(total, x.T @ x)


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    for item in value.values() if isinstance(value, dict) else []:
        yield from tensors_in(item)


@pytest.mark.parametrize("names", [("input_norm",), ("input_moment",), BOTH])
def test_the_bytes_are_those_of_the_tensors(names):
    layout = ADAPTER.layout(two_towers())
    made = Sums(names, layout, dict.fromkeys(layout, CPU))
    held = sum(tensor.nbytes for tensor in tensors_in(vars(made)) if tensor.dim())  # not the flags of NaN
    assert sums_size(layout, names) == held


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
    with pytest.raises(mf.MultiflowError, match="one pass, not input_norm and gradient"):
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
    monkeypatch.setattr(inputs, "free_memory", lambda device: size)
    assert calibrate("input_moment").batches == 4
    monkeypatch.setattr(inputs, "free_memory", lambda device: size - 1)
    said = (
        r"^the sums for input_moment of 5 layers need 0.0 GiB of memory, and 0.0 GiB are free; leave wide layers dense"
    )

    def never():
        raise AssertionError("a batch was asked for")
        yield

    with pytest.raises(mf.MultiflowError, match=said):
        calibrate("input_moment", batches=never())
    assert calibrate("input_norm").batches == 4


def test_sums_are_where_their_layers_are():
    layout = every(chain(4, 4, 4)).layout(chain(4, 4, 4))
    made = Sums(BOTH, layout, {"0": CPU, "1": META})
    x = torch.randn(3, 4)
    for path in ("0", "1", "0"):
        made.add(path, x, None, None)
    torch.testing.assert_close(made.stats(1).sums["input_norm"]["0"], 2 * x.square().sum(0).double())
    assert {of["1"].device for of in made.stats(1).sums.values()} == {META}
    assert made.stats(1).counts["input_norm"] == {"0": 6, "1": 3}


def test_layers_on_two_devices_need_memory_on_each(monkeypatch):
    model, free = chain(8, 8, 4), {CPU: 10_000, META: 1}
    layout = every(model).layout(model)
    size = sums_size(mf.Layout(layout.layers[:1]), ["input_moment"])
    monkeypatch.setattr(inputs, "free_memory", free.__getitem__)
    with pytest.raises(mf.MultiflowError, match="the sums for input_moment of 2 layers need"):
        check_sums_fit(layout, ["input_moment"], {"0": CPU, "1": META})
    free.update({CPU: size, META: size})
    check_sums_fit(layout, ["input_moment"], {"0": CPU, "1": META})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_of_which_a_part_is_on_a_gpu():
    model, x = chain(8, 8, 8), torch.randn(5, 7, 8)
    mask = torch.arange(7) < torch.tensor([[3], [7], [1], [2], [5]])
    options = {
        "streams": {".": "text"},
        "token_masks": lambda batch: {"text": batch["mask"]},
        "forward": lambda m, b: m[1](m[0](b["x"]).to(m[1].weight.device)),
    }
    here = mf.calibrate(model, [{"x": x, "mask": mask}], adapter=every(model, **options), statistics=BOTH)
    model[1].cuda()
    split = mf.calibrate(model, [{"x": x, "mask": mask}], adapter=every(model, **options), statistics=BOTH)
    for name in BOTH:
        assert split[name]["1"].is_cuda
        torch.testing.assert_close(split[name]["1"].cpu(), here[name]["1"])


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x.transpose(0, 1))  # (tokens, samples, features)


def test_a_token_mask_of_as_many_tokens_in_another_order_is_refused():
    x, mask = torch.ones(2, 5, 4), torch.arange(5) < torch.tensor([[2], [5]])
    x[~mask] = 100.0
    model, turned = SequenceFirst(), False
    adapter = mf.Adapter(
        groups={"all": "layer"},
        streams={"layer": "text"},
        forward=lambda m, b: m(b["x"]),
        token_masks=lambda b: {"text": b["mask"].T if turned else b["mask"]},
    )
    said = r"'layer' has shape \(5, 2, 4\), but .* stream 'text' has shape \(2, 5\); .* give one of shape \(5, 2\)$"
    with pytest.raises(mf.MultiflowError, match=said):
        mf.calibrate(model, [{"x": x, "mask": mask}], adapter=adapter)
    turned = True
    found = mf.calibrate(model, [{"x": x, "mask": mask}], adapter=adapter)
    assert found["input_norm"]["layer"].tolist() == [1.0] * 4


def test_an_input_without_its_batches_goes_by_the_number_of_tokens():
    x, mask = torch.ones(2, 5, 4), torch.arange(5) < torch.tensor([[2], [5]])
    x[~mask] = 100.0
    model = chain(4, 4)
    options = {"streams": {".": "text"}, "token_masks": lambda b: {"text": b["mask"]}}
    adapter = every(model, forward=lambda m, b: m(b["x"].flatten(0, 1)), **options)
    assert mf.calibrate(model, [{"x": x, "mask": mask}], adapter=adapter)["input_norm"]["0"].tolist() == [1.0] * 4


class Attending(nn.Module):
    """Four layers of 6 inputs; k reads what q reads only as long as ``apart`` is off, and v reads it twice."""

    def __init__(self, twice=False):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.twice = twice

    def forward(self, batch):
        x, apart = batch["x"], batch["apart"]
        mixed = self.q(x) + self.k(x + 1 if apart else x) + self.v(x)
        return self.o(mixed + self.v(x) if self.twice else mixed)


def moments(model, batches, statistics=("input_moment", "input_norm"), layers="[qkvo]", **options):
    adapter = mf.Adapter(groups={"all": f"^{layers}$"}, forward=lambda model, batch: model(batch))
    return mf.calibrate(model, batches, adapter=adapter, statistics=statistics, **options)


def attended(*apart):
    return [
        {"x": torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(n)), "apart": a} for n, a in enumerate(apart)
    ]


def held(stats, name="input_moment"):
    return len({id(total) for total in stats.sums[name].values()})


@pytest.mark.parametrize(("apart", "twice", "expected"), [
    ((False, False, False), False, 2),  # q, k and v together, and o
    ((False, True, False), False, 4),  # k has seen something else, in between
    ((True, False), False, 4),
    ((False, False), True, 3),  # v has seen everything twice
])  # fmt: skip
def test_layers_that_read_the_same_tensors_hold_one_sum(apart, twice, expected):
    model, batches = Attending(twice), attended(*apart)
    stats = moments(model, batches)
    assert held(stats) == held(stats, "input_norm") == expected
    for layer in "qkvo":
        alone = moments(model, batches, layers=layer)
        assert stats.counts["input_moment"][layer] == alone.counts["input_moment"][layer]
        for name in stats:
            assert torch.equal(stats.sums[name][layer], alone.sums[name][layer])


def test_one_sum_of_several_layers_goes_on_from_a_file_and_merges(tmp_path):
    model, batches = Attending(), attended(False, False, True)
    whole = moments(model, batches)
    path = tmp_path / "stats"
    part = moments(model, batches[:2])
    part.save(path)
    read = mf.Stats.load(path)
    again = Sums(("input_moment",), ADAPTER_OF_ALL.layout(model), dict.fromkeys("qkvo", CPU), mf.Stats(
        {"input_moment": read.sums["input_moment"]}, {"input_moment": read.counts["input_moment"]}, 2
    ))  # fmt: skip
    assert held(again.stats(2)) == 2
    merged = part.merge(moments(model, batches[2:]))
    twice = part.merge(part)
    assert held(twice) == 2
    for layer in "qkvo":
        torch.testing.assert_close(merged["input_moment"][layer], whole["input_moment"][layer])
        assert torch.equal(twice.sums["input_moment"][layer], 2 * part.sums["input_moment"][layer])


ADAPTER_OF_ALL = mf.Adapter(groups={"all": "^[qkvo]$"}, forward=lambda model, batch: model(batch))
