from __future__ import annotations

from functools import partial

import pytest

import multiflow as mf
from multiflow.pruners import PRUNERS, find_pruner, variant
from multiflow.types import NofM, PerRow, Unstructured


@pytest.fixture(autouse=True)
def _leave_the_registry_as_it_was(monkeypatch):
    monkeypatch.setattr(PRUNERS, "_records", dict(PRUNERS._records))


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
    with pytest.raises(
        mf.MultiflowError, match="unknown pruner 'mutliflow'; known: random, .*did you mean 'multiflow'"
    ):
        find_pruner("mutliflow")


def test_an_unknown_hyper_parameter_is_told_with_the_known_ones():
    with pytest.raises(mf.MultiflowError, match="no hyper-parameter 'alhpa'; it has: alpha; did you mean 'alpha'"):
        PRUNERS["ria"].settings({"alhpa": 1})
    with pytest.raises(mf.MultiflowError, match="it has: none"):
        PRUNERS["wanda"].settings({"alpha": 1})


def test_a_variant_differs_in_its_record_alone():
    variant("ria-1", "ria", "RIA, linear.", hyper={"alpha": 1.0}, pattern=PerRow())
    record = PRUNERS["ria-1"]
    assert record.function is PRUNERS["ria"].function
    assert record.hyper == {"alpha": 1.0}
    assert PRUNERS["ria"].hyper == {"alpha": 0.5}


def test_names_and_order_of_the_list():
    ours = [name for name in mf.list_pruners() if PRUNERS[name].function.__module__.startswith("multiflow.")]
    assert ours == [
        *("random", "magnitude", "magnitude-layer", "magnitude-modality", "l2", "lamp", "snip"),
        *("wanda", "ria", "multiflow"),
    ]
    assert all(mf.list_pruners().values())


@pytest.mark.parametrize("given", [["magnitude"], 3, None])
def test_what_is_no_name_is_one_sentence(given):
    with pytest.raises(mf.MultiflowError, match="unknown pruner '"):
        find_pruner(given)
    with pytest.raises(mf.MultiflowError, match="function 'partial' is not a pruner"):
        find_pruner(partial(len))
