"""Recovery: kept weights that do again what the dense model did, on calibration data alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.recovery import WAYS
from tests.small import ADAPTER, chain, every, towers_batches, two_towers

BATCHES = towers_batches(*[4] * 9)
FAST = {"epochs": 3}


def pruned(sparsity=0.8, method="magnitude"):
    return mf.prune(two_towers(), method, sparsity, BATCHES, adapter=ADAPTER)


def recover(how="blocks", result=None, batches=BATCHES, sparsity=0.8, **more):
    return mf.recover(two_towers(), result or pruned(), sparsity, batches, how, adapter=ADAPTER, **{**FAST, **more})


def apart(result, model=two_towers, batches=None):
    """How far the sparse model's outputs are from the dense one's, on batches that recovery has not seen."""
    dense, sparse = two_towers(), two_towers()
    result.apply_(sparse, 0.8)
    unseen = towers_batches(8, 8, seed=5)
    with torch.no_grad():
        return sum(float((dense(**b) - sparse(**b)).square().sum()) for b in batches or unseen)


@pytest.mark.parametrize("how", [*WAYS, ["blocks", "distill"]])
def test_the_sparse_model_comes_nearer_to_the_dense_one_and_keeps_its_zeros(how):
    before = pruned()
    after = recover(how, before, epochs=6)
    assert list(after.masks) == [0.8]
    assert after.masks[0.8] == before.masks[0.8]
    assert all(not after.weights[0.8][name][~mask].any() for name, mask in after.masks[0.8].items())
    assert apart(after) < 0.9 * apart(before)
    (report,) = after.settings["recovery"]
    assert report["distillation"]["after"] < report["distillation"]["before"]
    assert [way["how"] for way in report["ways"]] == ([how] if isinstance(how, str) else how)
    assert (report["batches"], report["held_out"]) == (9, 1)
    json.dumps(after.summary())


@pytest.mark.parametrize("how", WAYS)
def test_the_model_is_left_as_it_is(how):
    model = two_towers().train()
    model.head.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    mf.recover(model, pruned(), 0.8, BATCHES, how, adapter=ADAPTER, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_every_sub_block_is_nearer_to_the_dense_one_and_says_so():
    (report,) = recover(epochs=6).settings["recovery"]
    errors = report["ways"][0]["parts"]
    assert set(errors) == {"text", "text_out", "vision"}  # the two last layers share one weight
    assert all(after < before for before, after in errors.values())


def test_what_is_trained_besides_layers_is_in_the_result_and_in_its_files(tmp_path):
    result = recover("scale")
    others = set(result.weights[0.8]) - set(result.masks[0.8])
    assert others == {
        f"{at}.bias" for at in ("text.0", "text.2", "vision.0", "vision.2", "text_out", "vision_out", "head")
    }
    again = mf.Result.load(result.save(tmp_path / "run"))
    one, two = two_towers(), two_towers()
    result.apply_(one, 0.8)
    again.apply_(two, 0.8)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.head.bias, two_towers().head.bias)
    third = mf.recover(two_towers(), again, None, BATCHES, adapter=ADAPTER, epochs=1)  # and goes on from there
    assert third.masks[0.8].settings["recovered"] == ["scale", "blocks"]
    assert len(third.settings["recovery"]) == 2
    start = third.settings["recovery"][1]["distillation"]["before"]
    assert start == pytest.approx(result.settings["recovery"][0]["distillation"]["after"], rel=1e-4)


def test_what_has_been_recovered_is_recovered_again_with_a_temperature_that_is_one_number():
    model = two_towers()
    model.temperature = nn.Parameter(torch.tensor(0.5))
    model.register_forward_hook(lambda module, given, output: output * module.temperature)
    once = mf.recover(model, mf.prune(model, "magnitude", 0.8, adapter=ADAPTER), 0.8, BATCHES, "scale", adapter=ADAPTER)
    assert once.weights[0.8]["temperature"].shape == ()
    twice = mf.recover(model, once, 0.8, BATCHES, "distill", adapter=ADAPTER, epochs=3)
    losses = [report["distillation"] for report in twice.settings["recovery"]]
    assert losses[1]["before"] == pytest.approx(losses[0]["after"])
    assert losses[1]["after"] < losses[1]["before"]


def test_changed_parameters_of_another_model_are_refused(tmp_path):
    result = recover("scale", epochs=1)
    other = two_towers()
    other.head = nn.Linear(16, 2, bias=False)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(mf.MultiflowError, match="it has no parameter 'head.bias'"):
        result.apply_(other, 0.8)
    other.head = nn.Linear(16, 3)
    with pytest.raises(mf.MultiflowError, match=r"'head.bias' has shape \(3,\), .* \(2,\)"):
        result.apply_(other, 0.8)
    assert all(
        torch.equal(value, before[name])
        for name, value in other.state_dict().items()
        if name in before and "head" not in name
    )


@pytest.mark.parametrize("how", [*WAYS, ["lora", "blocks"]])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_recovery_that_is_ended_goes_on_to_the_same_bits(how, after, tmp_path):
    place = tmp_path / "checkpoint.safetensors"
    whole = recover(how)
    calls = 0

    def stop(what, done, total):
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt

    try:
        recover(how, checkpoint=place, progress=stop)
        stopped = False
    except KeyboardInterrupt:
        stopped = True
        assert list(tmp_path.iterdir())
    assert stopped == (after <= 3 or not isinstance(how, str))
    again = recover(how, checkpoint=place)
    assert whole.weights[0.8].keys() == again.weights[0.8].keys()
    assert all(torch.equal(value, again.weights[0.8][name]) for name, value in whole.weights[0.8].items())
    assert whole.settings["recovery"][0] == again.settings["recovery"][0]
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_recovery_is_refused(tmp_path):
    place = tmp_path / "checkpoint.safetensors"

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(checkpoint=place, progress=stop)
    with pytest.raises(mf.MultiflowError, match="belongs to a run with other settings: recovery"):
        recover(checkpoint=place, epochs=4)
    with pytest.raises(mf.MultiflowError, match="belongs to a run with other settings: masks"):
        recover(checkpoint=place, result=pruned(method="random"))


def test_it_ends_when_what_is_held_out_gets_no_better():
    (report,) = recover("distill", epochs=200, lr=0.5, patience=2).settings["recovery"]
    way = report["ways"][0]
    assert way["passes"] < 200
    assert way["after"] <= way["before"]


def test_a_rate_that_only_harms_leaves_the_weights_as_they_were():
    before = pruned()
    after = recover("distill", before, lr=100.0, patience=1)
    model = two_towers()
    before.apply_(model, 0.8)
    assert all(torch.equal(after.weights[0.8][n], model.get_submodule(n).weight) for n in before.masks[0.8])


def test_models_in_half_precision_get_their_own_type_back():
    model = two_towers().bfloat16()
    batches = [{**b, "pixels": b["pixels"].bfloat16()} for b in BATCHES]
    adapter = mf.Adapter(
        groups=ADAPTER.groups,
        forward=lambda model, b: model(b["pixels"].to(model.head.weight.dtype), b["ids"], b["mask"]),
        streams=ADAPTER.streams,
        token_masks=ADAPTER.token_masks,
    )
    result = mf.recover(
        model, mf.prune(model, "magnitude", 0.8, adapter=adapter), 0.8, batches, adapter=adapter, **FAST
    )
    assert {value.dtype for value in result.weights[0.8].values()} == {torch.bfloat16}
    result.apply_(model, 0.8)
    assert result.masks[0.8].is_applied(model)


def test_layers_without_a_block_are_fitted_one_by_one():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    batches = [torch.randn(16, 6, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    result = mf.prune(model, "magnitude", 0.5, adapter=every(model))
    (report,) = mf.recover(model, result, 0.5, batches, adapter=every(model), epochs=5).settings["recovery"]
    assert set(report["ways"][0]["parts"]) == {"0", "2"}


def test_padding_does_not_count():
    text = [{**b, "ids": b["ids"].masked_fill(b["mask"] == 0, 31)} for b in BATCHES]
    ours, theirs = recover(), recover(batches=text)
    for name in ("text.0", "text.2"):
        torch.testing.assert_close(ours.weights[0.8][name], theirs.weights[0.8][name], rtol=1e-4, atol=1e-6)


def test_masks_alone_are_enough():
    masks = pruned().masks[0.8]
    result = mf.recover(two_towers(), masks, batches=BATCHES, adapter=ADAPTER, **FAST)
    assert list(result.masks) == [0.8]
    with pytest.raises(mf.MultiflowError, match="sparsity 0.5 was given, .* 0.8"):
        mf.recover(two_towers(), masks, 0.5, BATCHES, adapter=ADAPTER)


# what is refused


def spent():
    batches = iter(BATCHES)
    list(batches)
    return batches


BAD_DATA = {
    "none": (None, "recovery needs calibration data; pass batches="),
    "no batches": ([], "there are no calibration batches"),
    "spent": (spent, "a generator that was used up before"),
    "one": (BATCHES[:1], "recovery was given one batch"),
    "a tensor": (torch.ones(3), "batches is a Tensor"),
    "statistics": (lambda: mf.calibrate(two_towers(), BATCHES, adapter=ADAPTER), "pass batches, not statistics"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_are_none(case):
    batches, said = BAD_DATA[case]
    with pytest.raises(mf.MultiflowError, match=said):
        recover(batches=batches() if callable(batches) else batches)


def test_a_generator_that_is_fresh_will_do():
    assert recover(batches=iter(BATCHES)).settings["recovery"] == recover().settings["recovery"]


@pytest.mark.parametrize("how", WAYS)
def test_a_loss_that_is_not_finite_ends_it_with_the_batch(how):
    batches = [dict(b) for b in BATCHES]
    batches[4]["pixels"] = batches[4]["pixels"] * torch.nan
    model = two_towers()
    with pytest.raises(mf.MultiflowError, match=r"the loss of .* is nan in batch 5"):
        mf.recover(model, pruned(), 0.8, batches, how, adapter=ADAPTER, **FAST)


def test_masks_of_another_model():
    model = chain(16, 24, 8)
    result = mf.prune(model, "magnitude", 0.5, adapter=every(model))
    with pytest.raises(mf.MultiflowError, match="another model: it has no layer '0'; use the model that they"):
        mf.recover(two_towers(), result, 0.5, BATCHES, adapter=ADAPTER)


def test_a_model_that_is_sparse_already_is_no_teacher():
    result, model = pruned(), two_towers()
    result.apply_(model, 0.8)
    with pytest.raises(mf.MultiflowError, match="give the dense model"):
        mf.recover(model, result, 0.8, BATCHES, adapter=ADAPTER)


SETTINGS = {
    "way": ({"how": "block"}, "unknown way of recovery 'block'; known: scale, blocks, distill, lora; did you mean"),
    "no way": ({"how": []}, "how names no way"),
    "number for a way": ({"how": 3}, "how 3 was given; give one of scale, blocks"),
    "none for a way": ({"how": None}, "how None was given; give one of scale, blocks"),
    "seed": ({"seed": "a"}, "seed 'a' was given; expected a whole number"),
    "empty batch": (
        {"batches": [*BATCHES[:2], {key: value[:0] for key, value in BATCHES[2].items()}]},
        "batch 3 of batches is empty",
    ),
    "setting": ({"epoch": 3}, "unknown setting of blocks 'epoch'.*did you mean 'epochs'"),
    "of another way": ({"rank": 3}, "unknown setting of blocks 'rank'"),
    "epochs": ({"epochs": 0}, "epochs 0 was given; expected a whole number of at least 1"),
    "lr": ({"lr": -1.0}, "lr -1.0 was given; expected a number above 0"),
    "rank": ({"how": "lora", "rank": 0}, "rank 0 was given"),
    "inputs": ({"inputs": "both"}, "unknown .*inputs.* 'both'; known: pruned, dense"),
    "sparsity": ({"sparsity": 0.5}, "there are no masks at sparsity 0.5; there are: 0.8"),
    "result": ({"result": {"a": 1}}, "result is a dict; expected what mf.prune"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_none(case):
    given, said = SETTINGS[case]
    with pytest.raises(mf.MultiflowError, match=said):
        recover(**given)


def test_a_result_with_several_sparsities_asks_which():
    with pytest.raises(mf.MultiflowError, match="masks at 0.5, 0.8; say which"):
        recover(result=pruned([0.5, 0.8]), sparsity=None)
