from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import multiflow as mf
from multiflow.base.types import NofM, PerRow, Unstructured
from multiflow.methods import PRUNERS, find_pruner, variant
from multiflow.methods.declare import typed_as
from tests.small import ADAPTER, towers_batches, two_towers


def test_the_signature_is_the_declaration():
    @mf.scorer("mine", allocation="global", pattern="2:4")
    def my_score(weight, *, input_norm, power=0.5):
        """First line
        goes on.

        Not this.
        """

    record = PRUNERS["mine"]
    assert record.needs == ("input_norm",)
    assert record.statistics == ("input_norm",)
    assert record.hyper == {"power": 0.5}
    assert record.summary == "First line goes on."
    assert (record.allocation, record.pattern) == ("global", NofM(2, 4))
    assert find_pruner(my_score) is record
    assert mf.list_pruners()["mine"] == "First line goes on."


def test_a_bare_decorator_takes_the_name_of_the_function():
    @mf.scorer
    def plain(weight):
        """Say."""

    assert PRUNERS["plain"].function is plain
    assert (PRUNERS["plain"].allocation, PRUNERS["plain"].pattern) == ("uniform", Unstructured())


def test_running_a_notebook_cell_again_replaces_the_pruner():
    for _ in range(2):

        @mf.scorer
        def again(weight):
            """Say."""

    assert PRUNERS["again"].function is again


def test_a_taken_name_is_an_error():
    with pytest.raises(mf.MultiflowError, match="pruner 'wanda' is registered already"):

        @mf.scorer("wanda")
        def other(weight):
            """Say."""


def test_a_function_that_is_no_pruner_says_how_to_make_it_one():
    with pytest.raises(mf.MultiflowError, match="decorate it with"):
        find_pruner(lambda weight: weight)


def test_an_unknown_name_is_told_with_the_closest():
    with pytest.raises(mf.MultiflowError, match="unknown pruner 'mutliflow'; known: l2, .*did you mean 'multiflow'"):
        find_pruner("mutliflow")


def test_an_unknown_hyper_parameter_is_told_with_the_known_ones():
    with pytest.raises(mf.MultiflowError, match="'alhpa'; it has: alpha; did you mean 'alpha'"):
        PRUNERS["ria"].settings({"alhpa": 1})
    with pytest.raises(mf.MultiflowError, match="it has: none"):
        PRUNERS["wanda"].settings({"alpha": 1})


def test_a_variant_differs_in_its_record_alone():
    variant("ria-1", "ria", "RIA, linear.", hyper={"alpha": 1.0}, pattern=PerRow())
    record = PRUNERS["ria-1"]
    assert record.function is PRUNERS["ria"].function
    assert record.hyper == {"alpha": 1.0}
    assert PRUNERS["ria"].hyper == {"alpha": 0.5}


def test_a_hyper_parameter_that_a_variant_cannot_have():
    for given, said in (({"beta": 1}, "is given 'beta', which 'ria' does not"), ({"steps": 2}, "need stepwise=True")):
        with pytest.raises(mf.MultiflowError, match=said):
            variant("ria-b", "ria", "No.", hyper=given)
    assert "ria-b" not in PRUNERS


def test_names_and_order_of_the_list():
    ours = [name for name in mf.list_pruners() if PRUNERS[name].function.__module__.startswith("multiflow.")]
    assert ours == [
        *("l2", "lamp", "magnitude", "magnitude-layer", "magnitude-modality", "random"),  # without data
        *("multiflow", "ria", "wanda", "snip", "itersnip"),  # scores: forward, backward, in steps
        *("admm", "alps", "dsnot", "exchange", "lobs", "multiflow-refit", "sparsegpt"),
        *("chita", "chita++", "tamt"),
    ]
    assert all(mf.list_pruners().values())


@pytest.mark.parametrize("given", [["magnitude"], 3, None])
def test_what_is_no_name_is_one_sentence(given):
    with pytest.raises(mf.MultiflowError, match="unknown pruner '"):
        find_pruner(given)
    with pytest.raises(mf.MultiflowError, match="function 'partial' is not a pruner"):
        find_pruner(partial(len))


def prune(method, sparsity=0.5, **options):
    return mf.prune(two_towers(), method, sparsity, towers_batches(), adapter=ADAPTER, **options)


def test_a_solver_from_outside_in_under_ten_lines():
    @mf.solver
    def shrunk(weights, count, select, *, gradient_rows, share=0.5):
        """Magnitude, and what is kept shrinks."""
        masks = select({name: weight.abs() for name, weight in weights.items()}, count)
        return masks, {name: share * weight * masks[name] for name, weight in weights.items()}

    record = PRUNERS["shrunk"]
    assert (record.kind, record.allocation, record.needs) == ("solver", "global", ("gradient_rows",))
    assert record.hyper == {"share": 0.5, "steps": 1, "batches_per_step": 50, "schedule": "exp"}
    assert record.changes_weights
    assert record.stepwise
    result, model = prune(shrunk, share=0.25), two_towers()
    assert result.masks == prune("magnitude").masks
    for name, weight in result.weights[0.5].items():
        assert torch.equal(weight, 0.25 * model.get_submodule(name).weight * result.masks[0.5][name])


def test_a_learner_from_outside_in_under_ten_lines():
    @mf.learner("grown", allocation="global")
    def grown(model, weights, loss, select, *, steps=2):
        """Magnitude of summed gradients."""
        for _ in range(steps):
            loss().backward()
        return {name: weight.grad.abs() for name, weight in weights.items()}

    record = PRUNERS["grown"]
    assert (record.kind, record.allocation, record.needs, record.hyper) == ("learner", "global", (), {"steps": 2})
    assert record.needs_data
    assert not record.stepwise
    assert not record.changes_weights
    model = two_towers()
    for batch in towers_batches()[:2]:
        ADAPTER.loss(model, batch).backward()
    scores = {name: model.get_submodule(name).weight.grad.abs() for name in ADAPTER.layout(model)}
    masks = prune(grown).masks[0.5]
    border = max(float(scores[name][~mask].max()) for name, mask in masks.items())
    assert all(bool((scores[name][mask] >= border).all()) for name, mask in masks.items())
    assert masks.sparsity == 0.5


def test_a_learner_takes_what_it_asks_for_and_no_more():
    asked = {}

    @mf.learner
    def curious(model, weights, loss, select, *, sparsity, seed, checkpoint, progress, power=1.0):
        """Ask for everything."""
        asked.update(sparsity=sparsity, seed=seed, checkpoint=checkpoint, progress=progress, power=power)
        return {name: weight.abs() for name, weight in weights.items()}

    prune(curious, 0.75, seed=3, power=2.0)
    assert asked == {"sparsity": 0.75, "seed": 3, "checkpoint": None, "progress": None, "power": 2.0}


def test_scores_of_a_learner_that_cannot_be_ranked_name_pruner_and_layer():
    bad = {"nan": lambda w: w / 0 * 0, "flat": lambda w: w.flatten()}
    for name, make in bad.items():
        mf.learner(name)(lambda model, weights, loss, select, make=make: {n: make(w) for n, w in weights.items()})
    mf.learner("empty")(lambda model, weights, loss, select: {})
    with pytest.raises(mf.MultiflowError, match="'nan' gave NaN or Inf .*'text.0'"):
        prune("nan")
    with pytest.raises(mf.MultiflowError, match=r"'flat' gave scores \(384,\) .*'text.0'; .*\(24, 16\)"):
        prune("flat")
    with pytest.raises(mf.MultiflowError, match="'empty' gave scores NoneType .*'text.0'"):
        prune("empty")


def test_a_scorer_with_a_schedule_is_repeated():
    variant("ria-60", "ria", "RIA in steps.", stepwise=True, hyper={"steps": 2})
    assert PRUNERS["ria-60"].stepwise
    assert not PRUNERS["ria"].stepwise
    result = prune("ria-60", alpha=0.25, batches_per_step=2)
    assert result.settings["hyper"] == {"alpha": 0.25, "steps": 2, "batches_per_step": 2, "schedule": "exp"}
    assert result.masks[0.5].sparsity == pytest.approx(0.5, abs=1e-3)
    assert result.masks != prune("ria", alpha=0.25).masks


def test_a_solver_that_drops_another_number_is_told():
    @mf.solver
    def sloppy(weights, count, select, *, gradient_rows):
        """Drop one more."""
        masks = select({name: weight.abs() for name, weight in weights.items()}, count + 1)
        return masks, dict(weights)

    with pytest.raises(mf.MultiflowError, match="'sloppy' drops 897 weights; .* 896"):
        prune(sloppy)


@pytest.mark.parametrize(("declare", "need", "there"), [
    (mf.scorer, "sparsity", "input_norm, input_mean, input_moment, gradient, generator"),
    (mf.scorer, "gradient_rows", "input_norm, input_mean, input_moment, gradient, generator"),
    (mf.solver, "gradient", "gradient_rows, batch_samples"),
    (mf.learner, "input_norm", "sparsity, seed, checkpoint, progress"),
])  # fmt: skip
def test_what_no_pruner_of_its_kind_is_given_is_told(declare, need, there):
    scope = {}
    exec(f"def wants(*args, {need}): pass", scope)
    declare("wants")(scope["wants"])
    kind = PRUNERS["wants"].kind
    with pytest.raises(
        mf.MultiflowError, match=f"'wants' needs '{need}', which no {kind} is given; there are: {there}"
    ):
        prune("wants")


def test_a_check_of_hyper_parameters_comes_before_anything_is_computed():
    def above(power):
        if power <= 0:
            raise mf.MultiflowError(f"power {power}")

    @mf.scorer(check=above)
    def checked(weight, *, input_norm, power=0.5, other=1):
        """Say."""
        return weight.abs() * input_norm**power

    def never():
        raise AssertionError("a batch was asked for")
        yield

    variant("checked-2", "checked", "Too.", hyper={"power": 2.0, "other": 1})
    for name in ("checked", "checked-2"):
        with pytest.raises(mf.MultiflowError, match="power -1.0"):
            mf.prune(two_towers(), name, 0.5, never(), adapter=ADAPTER, power=-1)
    assert prune("checked", power=0.1).settings["hyper"] == {"power": 0.1, "other": 1}


@pytest.mark.parametrize(("declare", "function", "said"), [
    (mf.scorer, lambda weight, input_norm: weight, "scorer 'mine' takes weight, input_norm by position, but is given "
     r"weight; statistics and hyper-parameters come after a star: def mine\(weight, \*, ...\)"),
    (mf.fitter, lambda weight, *, input_norm: weight, "takes weight by position, but is given weight, choose;"),
    (mf.solver, lambda weights, count: weights, "solver 'mine' takes weights, count by position"),
    (mf.learner, lambda model, weights, loss: weights, "learner 'mine' takes model, weights, loss by position"),
    (mf.learner, lambda *, lr=1.0: {}, "learner 'mine' takes nothing by position"),
])  # fmt: skip
def test_a_function_that_cannot_be_called_is_refused_when_it_is_registered(declare, function, said):
    with pytest.raises(mf.MultiflowError, match=said):
        declare("mine")(function)
    assert "mine" not in PRUNERS


def test_what_can_be_called_is_taken():
    mf.scorer("any")(lambda *args, input_norm: args[0])
    mf.scorer("bound")(lambda weight, scale=2: weight * scale)
    mf.fitter("named")(lambda w, c, /, *, input_norm, ridge=1.0: (c(w), w))
    assert {"any", "bound", "named"} <= set(PRUNERS)
    assert (PRUNERS["named"].needs, PRUNERS["named"].hyper) == (("input_norm",), {"ridge": 1.0})


DEFAULTS = {"steps": 60, "ridge": 1e-5, "schedule": "exp", "keep": True, "free": None}


@pytest.mark.parametrize(("name", "given", "expected"), [
    ("steps", 3, 3),
    ("steps", 3.0, 3),
    ("steps", np.int64(3), 3),
    ("ridge", 1, 1.0),
    ("ridge", np.float32(0.5), 0.5),
    ("schedule", "linear", "linear"),
    ("keep", False, False),
    ("free", "x", "x"),
    ("free", None, None),
])  # fmt: skip
def test_values_get_the_type_of_their_default(name, given, expected):
    value = typed_as(DEFAULTS[name], name, given, "p")
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(("name", "given", "said"), [
    ("steps", "x", "steps='x' of pruner 'p' is a str; expected a whole number, such as its default 60"),
    ("steps", 2.5, "steps=2.5 of pruner 'p' is a float; expected a whole number"),
    ("steps", True, "steps=True of pruner 'p' is a bool; expected a whole number"),
    ("steps", None, "steps=None of pruner 'p' is a NoneType; expected a whole number"),
    ("steps", float("inf"), "steps=inf of pruner 'p' is a float; expected a whole number"),
    ("ridge", "1e-5", "ridge='1e-5' of pruner 'p' is a str; expected a finite number, such as its default 1e-05"),
    ("ridge", float("nan"), "ridge=nan of pruner 'p' is a float; expected a finite number"),
    ("ridge", [1.0], "ridge=[1.0] of pruner 'p' is a list; expected a finite number"),
    ("schedule", 3, "schedule=3 of pruner 'p' is a int; expected a text, such as its default 'exp'"),
    ("keep", 1, "keep=1 of pruner 'p' is a int; expected true or false"),
])  # fmt: skip
def test_values_of_another_type_are_refused(name, given, said):
    with pytest.raises(mf.MultiflowError) as caught:
        typed_as(DEFAULTS[name], name, given, "p")
    assert str(caught.value).startswith(said)
