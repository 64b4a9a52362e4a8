"""Bad input, of the methods that look at the model more than once above all: told before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import multiflow as mf
from multiflow.calibration import gradients
from multiflow.pruning.plan import request
from tests.small import ADAPTER, chain, every, towers_batches, two_towers

AGAIN = ["itersnip", "chita", "chita++", "tamt"]


class Untouched:
    """Batches that must not be asked for."""

    def __iter__(self):
        raise AssertionError("a batch was asked for")


def never():
    raise AssertionError("a batch was asked for")
    yield


def refused(method, said, **options):
    options = {"sparsity": 0.5, "batches": Untouched(), "adapter": ADAPTER} | options
    with pytest.raises(mf.MultiflowError, match=said):
        mf.prune(two_towers(), method, **options)


@pytest.mark.parametrize("method", AGAIN)
def test_statistics_do_for_no_method_that_runs_the_model_anew(method):
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics=["gradient"])
    said = rf"pruner '{method.replace('+', '[+]')}' runs the model anew in every step; pass batches, not statistics"
    refused(method, said, batches=stats)


@pytest.mark.parametrize("method", AGAIN)
def test_no_data(method):
    refused(method, "needs calibration data; pass batches=", batches=None)


@pytest.mark.parametrize("method", AGAIN)
def test_no_loss(method):
    adapter = mf.Adapter(groups=ADAPTER.groups, forward=ADAPTER.forward, name="towers")
    refused(method, r"adapter 'towers' has no loss, which gradients need; pass Adapter\(loss=...\)", adapter=adapter)


@pytest.mark.parametrize("method", ["itersnip", "chita", "chita++"])
@pytest.mark.parametrize(("given", "said"), [
    ({"steps": 0}, "steps 0 was given; expected a whole number of at least 1"),
    ({"batches_per_step": -3}, "batches_per_step -3 was given; expected a whole number of at least 1"),
    ({"steps": 2.5}, "steps=2.5 of pruner '.*' is a float; expected a whole number"),
    ({"steps": True}, "steps=True of pruner '.*' is a bool; expected a whole number"),
    ({"batches_per_step": "4"}, "batches_per_step='4' of pruner '.*' is a str; expected a whole number"),
    ({"schedule": "expp"}, "'expp'; known: exp, linear; did you mean 'exp'"),
    ({"schedule": "lineal"}, "unknown schedule 'lineal'; known: exp, linear; did you mean 'linear'"),
    ({"step": 3}, "has no hyper-parameter 'step'; it has: .*; did you mean 'steps'"),
])  # fmt: skip
def test_bad_schedules(method, given, said):
    refused(method, said, **given)


def test_settings_of_the_schedule_where_there_is_none():
    refused("snip", "pruner 'snip' has no hyper-parameter 'steps'; it has: none", steps=3)
    refused("tamt", "pruner 'tamt' has no hyper-parameter 'schedule'; it has: lr, steps, threshold", schedule="exp")


def test_a_pattern_of_blocks_cannot_be_reached_in_steps():
    refused("itersnip", "pattern '2:4' cannot be reached in steps; pass steps=1", pattern="2:4", steps=2)
    options = {"adapter": ADAPTER, "pattern": "2:4"}
    masks = mf.prune(two_towers(), "itersnip", 0.5, towers_batches(), steps=1, **options).masks
    assert masks == mf.prune(two_towers(), "snip", 0.5, towers_batches(), **options).masks


@pytest.mark.parametrize("method", ["chita", "chita++"])
@pytest.mark.parametrize("given", [{"allocation": "uniform"}, {"pattern": "per-row"}, {"pattern": "2:4", "steps": 1}])
def test_chita_shares_the_sparsity_out_itself(method, given):
    refused(method, "shares the sparsity out itself, whatever the pattern; leave pattern and allocation out", **given)


def test_what_chita_does_anyway_may_be_said():
    options = {"adapter": ADAPTER, "allocation": "global", "pattern": "unstructured"}
    said = mf.prune(two_towers(), "chita", 0.5, towers_batches(), **options)
    assert said.masks == mf.prune(two_towers(), "chita", 0.5, towers_batches(), adapter=ADAPTER).masks


@pytest.mark.parametrize("method", AGAIN)
def test_a_generator_serves_one_sparsity(method):
    said = (
        "begins anew for each of 2 sparsities, but batches is a generator, which can be gone through once; pass a list"
    )
    refused(method, said, sparsity=[0.5, 0.75], batches=never())
    settings = {"steps": 1, "adapter": ADAPTER}
    one = mf.prune(two_towers(), method, 0.5, iter(towers_batches()), **settings)
    assert one.masks == mf.prune(two_towers(), method, 0.5, towers_batches(), **settings).masks


@pytest.mark.parametrize("method", ["chita", "chita++"])
def test_too_little_memory_says_how_many_rows_fit(method, monkeypatch):
    row = 4 * ADAPTER.layout(two_towers()).size
    monkeypatch.setattr(gradients, "free_memory", lambda device: row * (gradients.HEADROOM + 3))
    said = r"^50 gradient rows of .* GiB are free; at most {0} rows fit: give batches_per_step={0}$"
    fit = 3 if method == "chita" else 3 - gradients.LATER
    refused(method, said.format(fit))  # how many batches there are is not known
    options = {"adapter": ADAPTER, "steps": 1}
    with pytest.raises(mf.MultiflowError, match=r"^4 gradient rows .* at most 3 rows fit"):
        mf.prune(two_towers(), method, 0.5, towers_batches(), **options)
    assert (
        mf.prune(two_towers(), method, 0.5, towers_batches(), batches_per_step=3, **options).masks[0.5].sparsity == 0.5
    )
    assert mf.prune(two_towers(), method, 0.5, towers_batches()[:3], **options).masks[0.5].sparsity == 0.5


@pytest.mark.parametrize(("steps", "more"), [(1, gradients.HEADROOM), (2, gradients.HEADROOM + gradients.LATER)])
def test_the_memory_that_chita_needs_is_stated_before_a_batch_is_looked_at(steps, more, caplog):
    def loss(model, batch):
        said.append(caplog.text)
        return ADAPTER.loss(model, batch)

    said, model = [], two_towers()
    caplog.set_level("INFO", logger="multiflow")
    mf.prune(model, "chita", 0.5, towers_batches(), adapter=replace(ADAPTER, loss=loss), steps=steps)
    need = (4 + more) * 4 * ADAPTER.layout(model).size / 1e6
    assert f"chita takes 4 gradient rows and {more} more to work with: {need:.1f} MB" in said[0]


@pytest.mark.parametrize("method", AGAIN)
def test_a_loss_that_is_nan_names_the_batch_and_leaves_the_model_as_it_was(method):
    model, batches = two_towers().train(), towers_batches(2, 2, 2)
    batches[1]["pixels"][0, 0, 0] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(mf.MultiflowError, match="^the loss of batch 2 is nan; check"):
        mf.prune(model, method, 0.5, batches, adapter=ADAPTER)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("method", AGAIN)
@pytest.mark.parametrize("batches", [[], iter([])])
def test_no_batches_at_all(method, batches):
    refused(method, "there are no calibration batches", batches=batches)


@pytest.mark.parametrize("method", AGAIN)
def test_a_loss_that_is_no_scalar(method):
    model = chain(4, 3)
    with pytest.raises(mf.MultiflowError, match=r"the loss of batch 1 is \(2, 3\); .* must return a scalar tensor"):
        mf.prune(model, method, 0.5, [torch.ones(2, 4)], adapter=every(model, loss=lambda m, b: m(b)))


def sparsities(given, pattern=None):
    return request("magnitude", given, pattern=pattern).sparsities


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1.0, r"sparsity 1.0 is not in \[0, 1\)"),
        (-0.1, "sparsity -0.1 is not in"),
        (63, r"sparsity 63 is not in .*did you mean 0.63\?"),
        (float("nan"), "sparsity nan is not in"),
        ("0.5", r"sparsity '0.5' is not in .*did you mean the number 0.5\?"),
        ("75 %", r"did you mean the number 0.75\?"),
        (True, "sparsity True is not in"),
        ([], "sparsity is an empty list"),
        ([0.5, 2], "sparsity 2 is not in"),
    ],
)
def test_sparsity_outside_its_range(given, message):
    with pytest.raises(mf.MultiflowError, match=message):
        sparsities(given)


def test_sparsities_as_arrays_and_doubles():
    assert sparsities(np.array([0.5, 0.75])) == (0.5, 0.75)
    assert sparsities([0.5, 0.5]) == (0.5,)
    with pytest.raises(mf.MultiflowError, match=r"pattern '2:4' means sparsity 0.5, not 0.63"):
        sparsities(0.63, "2:4")


def test_a_sparsity_rounded_to_three_digits_names_an_n_of_m_pattern():
    assert sparsities(0.667, "1:3") == (0.667,)
    with pytest.raises(mf.MultiflowError, match="means sparsity 0.666667, not 0.66"):
        sparsities(0.66, "1:3")


def test_sparsities_whose_files_would_have_one_name():
    assert sparsities([1 / 3, 0.33333]) == (1 / 3, 0.33333)
    with pytest.raises(mf.MultiflowError, match=r"0\.3333333333333333, 0\.333333 .* six"):
        sparsities([1 / 3, 0.333333])


def test_weights_that_are_not_loaded_are_refused():
    model = chain(4, 4).to("meta")
    with pytest.raises(mf.MultiflowError, match="the weight of layer '0' is on the meta device"):
        mf.prune(model, "magnitude", 0.5, adapter=every(model))
