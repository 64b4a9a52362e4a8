from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.calibration import to_device
from tests import golden_data
from tests.small import ADAPTER, chain, every, towers_batches, two_towers


def rms(*inputs: torch.Tensor) -> torch.Tensor:
    tokens = torch.cat([x.double().reshape(-1, x.shape[-1]) for x in inputs])
    return tokens.square().mean(0).sqrt().float()


def test_is_the_root_mean_square_over_real_tokens_of_all_users():
    model, batches = two_towers(), towers_batches()
    stats = mf.calibrate(model, batches, adapter=ADAPTER)
    assert list(stats["input_norm"]) == list(ADAPTER.layout(model))
    with torch.no_grad():
        text = [model.embed(b["ids"])[b["mask"].bool()] for b in batches]
        vision = [b["pixels"] for b in batches]
        shared = [model.text(x) for x in text] + [model.vision(x) for x in vision]
    for name, inputs in {"text.0": text, "vision.0": vision, "text_out": shared}.items():
        torch.testing.assert_close(stats["input_norm"][name], rms(*inputs), rtol=1e-5, atol=1e-7)
    assert stats.counts["input_norm"]["text.0"] == sum(int(b["mask"].sum()) for b in batches)


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (3, 1)])
def test_batches_of_one_and_a_smaller_last_one(sizes):
    stats = mf.calibrate(two_towers(), towers_batches(*sizes), adapter=ADAPTER)
    assert stats.counts["input_norm"]["vision.0"] == 5 * sum(sizes)


def test_how_the_data_are_cut_into_batches_does_not_show():
    model, batches = two_towers(), towers_batches(4, 4, 4)
    whole = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
    a, b = (mf.calibrate(model, data, adapter=ADAPTER)["input_norm"] for data in (batches, [whole]))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=0)


def test_the_order_of_the_batches_does_not_show():
    model, batches = two_towers(), towers_batches(*range(1, 9))
    a, b = (mf.calibrate(model, data, adapter=ADAPTER)["input_norm"] for data in (batches, batches[::-1]))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_more_tokens_than_one_chunk():
    model = chain(6, 5)
    x = torch.randn(3, 301, 6)
    stats = mf.calibrate(model, [x], adapter=every(model))
    torch.testing.assert_close(stats["input_norm"]["0"], rms(x), rtol=1e-6, atol=0)


def test_padding_never_counts_and_its_mask_is_never_guessed():
    """The image stream is as long as the text, and keeps all its tokens."""
    model, batches = two_towers(), towers_batches(4, tokens=5)
    changed = [b | {"ids": torch.where(b["mask"].bool(), b["ids"], 31 - b["ids"])} for b in batches]
    a, b = (mf.calibrate(model, data, adapter=ADAPTER) for data in (batches, changed))
    assert all(torch.equal(a["input_norm"][n], b["input_norm"][n]) for n in ("text.0", "text.2"))
    assert a.counts["input_norm"]["vision.0"] == 20 > a.counts["input_norm"]["text.0"]


def test_bfloat16_sums_in_more_than_bfloat16():
    model = chain(8, 4).bfloat16()
    x = torch.full((1000, 8), 0.1, dtype=torch.bfloat16)
    norm = mf.calibrate(model, [x], adapter=every(model))["input_norm"]["0"]
    torch.testing.assert_close(norm, x[0].float(), rtol=1e-5, atol=0)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(self.a(x))
        q = self.q(y)
        y.mul_(2)  # in place: the same tensor object, other values
        return q + self.k(y)


def test_a_layer_used_twice_and_a_tensor_changed_in_place():
    model, x = Twice(), torch.randn(5, 4)
    norms = mf.calibrate(model, [x], adapter=every(model))["input_norm"]
    with torch.no_grad():
        once = model.a(x)
        twice = model.a(once)
    torch.testing.assert_close(norms["a"], rms(x, once))
    torch.testing.assert_close(norms["q"], rms(twice))
    torch.testing.assert_close(norms["k"], rms(2 * twice))


def test_one_module_under_two_paths_counts_each_use_once():
    model = nn.Sequential(layer := nn.Linear(4, 4), layer)
    x = torch.randn(5, 4)
    stats = mf.calibrate(model, [x], adapter=every(model))
    assert stats.counts["input_norm"] == {"0": 10}


def test_a_layer_never_reached_is_named():
    model = two_towers()
    adapter = mf.Adapter(groups={"text": r"^text\.", "head": "^head$"}, forward=lambda m, b: m.text(m.embed(b["ids"])))
    with pytest.raises(mf.MultiflowError, match="1 of 3 layers .* never reached .*'head'"):
        mf.calibrate(model, towers_batches(), adapter=adapter)


def test_padding_alone_is_not_taken_for_a_layer_never_reached():
    batches = towers_batches(2, 3)
    empty = [batch | {"mask": torch.zeros_like(batch["mask"])} for batch in batches]
    with pytest.raises(mf.MultiflowError, match=r"layer 'text.0' saw nothing but padding: .* stream 'text' are masked"):
        mf.calibrate(two_towers(), empty, adapter=ADAPTER)
    both = mf.calibrate(two_towers(), [empty[0], batches[1]], adapter=ADAPTER)
    alone = mf.calibrate(two_towers(), [batches[1]], adapter=ADAPTER)
    assert torch.equal(both["input_norm"]["text.0"], alone["input_norm"]["text.0"])


def test_what_an_adapter_says_of_a_batch_says_which():
    def forward(model, batch):
        if len(batch["ids"]) == 2:
            raise mf.MultiflowError("a batch has no 'boxes'; it has none")
        return ADAPTER.forward(model, batch)

    adapter = mf.Adapter(groups={"text": r"^text\."}, forward=forward)
    with pytest.raises(mf.MultiflowError, match=r"^batch 2 has no 'boxes'; it has none$"):
        mf.calibrate(two_towers(), towers_batches(3, 2), adapter=adapter)


@pytest.mark.parametrize("method", ["multiflow", "snip"])
@pytest.mark.parametrize("family", ["xvlm", "blip", "dino"])
def test_a_batch_of_a_known_family_that_lacks_a_key_is_numbered(family, method):
    batches = golden_data.batches(family)[:2]
    batches[1] = {name: value for name, value in batches[1].items() if name != "pixel_values"}
    with pytest.raises(mf.MultiflowError, match=r"^batch 2 has no 'pixel_values'"):
        mf.prune(golden_data.model(family), method, 0.5, batches)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_name_the_layer_and_the_batch(value):
    batches = towers_batches(2, 2, 2)
    batches[1]["pixels"][0, 0, 0] = value
    with pytest.raises(mf.MultiflowError, match="NaN or Inf .*input of layer 'vision.0' in batch 2"):
        mf.calibrate(two_towers(), batches, adapter=ADAPTER)


@pytest.mark.parametrize("batches", [[], iter([])])
def test_no_batches(batches):
    with pytest.raises(mf.MultiflowError, match="no calibration batches"):
        mf.calibrate(two_towers(), batches, adapter=ADAPTER)


@pytest.mark.parametrize("batches", [{"pixels": 1}, torch.ones(3), "data", 7])
def test_what_is_no_iterable_of_batches(batches):
    with pytest.raises(mf.MultiflowError, match="expected an iterable of batches"):
        mf.calibrate(two_towers(), batches, adapter=ADAPTER)


def test_a_token_mask_that_does_not_fit_names_the_layer_and_both_shapes():
    adapter = mf.Adapter(
        groups={"vision": r"^vision\."},
        forward=ADAPTER.forward,
        streams={"vision": "text"},
        token_masks=lambda batch: {"text": batch["mask"].bool()},
    )
    with pytest.raises(mf.MultiflowError, match=r"'vision.0' .*\(4, 5, 16\), .* mask .* \(4, 7\)"):
        mf.calibrate(two_towers(), towers_batches(4), adapter=adapter)


def test_model_modes_and_hooks_are_left_as_found_even_after_an_error():
    model = two_towers().train()
    model.text.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    for batches in (towers_batches(), [{}]):
        try:
            mf.calibrate(model, batches, adapter=ADAPTER)
        except mf.MultiflowError as error:
            assert str(error) == "batch 1 has no 'mask', which the adapter needs; it has: nothing"  # noqa: PT017
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert all(not module._forward_pre_hooks for module in model.modules())


def test_region_batches_add_up():
    model = chain(4, 3)
    adapter = mf.Adapter(groups={"all": "."}, forward=lambda m, b: m(b["x"]))
    x, y = torch.randn(5, 4), torch.randn(7, 4)
    stats = mf.calibrate(model, [{"x": x, "region": {"x": y}}], adapter=adapter)
    torch.testing.assert_close(stats["input_norm"]["0"], rms(x, y))
    alone = mf.calibrate(model, [{"region": {"x": y}}], adapter=adapter)
    torch.testing.assert_close(alone["input_norm"]["0"], rms(y))


def test_progress_is_told_after_every_batch():
    told = []
    mf.calibrate(two_towers(), towers_batches(1, 1), adapter=ADAPTER, progress=lambda *step: told.append(step))
    assert told == [("calibrate", 1, 2), ("calibrate", 2, 2)]


def test_the_first_layer_that_saw_nan_is_named_not_the_first_of_the_module_tree():
    """The text tower comes first in the tree and shares its last weight with vision, whose data are bad."""
    batches = towers_batches(2)
    batches[0]["pixels"][0, 0, 0] = float("nan")
    adapter = mf.Adapter(groups={"late": r"^text_out$|^vision\.2$"}, forward=ADAPTER.forward)
    with pytest.raises(mf.MultiflowError, match=r"input of layer 'vision.2' in batch 1"):
        mf.calibrate(two_towers(), batches, adapter=adapter)


def test_one_tensor_under_two_masks():
    model, x = chain(4, 4), torch.randn(2, 3, 4)
    adapter = mf.Adapter(
        groups={"all": "."},
        forward=lambda m, b: m(b["x"]),
        streams={".": "text"},
        token_masks=lambda batch: {"text": batch["mask"]},
    )
    whole, first = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[True, False, False]] * 2)
    stats = mf.calibrate(model, [{"x": x, "mask": whole}, {"x": x, "mask": first}], adapter=adapter)
    assert stats.counts["input_norm"] == {"0": 8}
    torch.testing.assert_close(stats["input_norm"]["0"], rms(x, x[:, 0]))


def test_a_forward_in_inference_mode_that_changes_a_tensor_in_place():
    model, x = Twice(), torch.randn(5, 4)
    with torch.inference_mode():
        norms = mf.calibrate(model, [x], adapter=every(model))["input_norm"]
        q = model.a(model.a(x))
    torch.testing.assert_close(norms["q"], rms(q))
    torch.testing.assert_close(norms["k"], rms(2 * q))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(torch.ones(2, 3, 4))


def test_a_loader_of_a_stream_has_no_length():
    model, told = chain(4, 4), []
    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    mf.calibrate(model, loader, adapter=every(model), progress=lambda *step: told.append(step))
    assert told == [("calibrate", 1, None), ("calibrate", 2, None)]


def test_a_stream_that_token_masks_does_not_know_is_named():
    adapter = mf.Adapter(
        groups={"vision": r"^vision\."},
        forward=ADAPTER.forward,
        streams={"vision": "image"},
        token_masks=lambda batch: {"imgae": None},
    )
    with pytest.raises(mf.MultiflowError, match="'vision.0' .*'image', .* gives imgae"):
        mf.calibrate(two_towers(), towers_batches(4), adapter=adapter)


Pair = namedtuple("Pair", "x more")


def test_a_batch_is_moved_whatever_holds_its_tensors():
    batch = Pair(torch.ones(2), {"y": [torch.ones(1), (torch.ones(3), "text")]})
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is Pair
    assert moved.x.is_meta
    assert moved.more["y"][0].is_meta
    assert moved.more["y"][1][0].is_meta
    assert moved.more["y"][1][1] == "text"


def test_a_model_without_values_is_refused():
    model = chain(4, 4).to("meta")
    with pytest.raises(mf.MultiflowError, match="layer '0' is on the meta device"):
        mf.calibrate(model, [torch.ones(2, 4)], adapter=every(model))
