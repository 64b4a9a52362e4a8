from __future__ import annotations

import pytest

import multiflow as mf
from multiflow.methods import PRUNERS
from multiflow.methods.signature import taken


@pytest.fixture(autouse=True)
def _leave_the_registry_as_it_was(monkeypatch):
    monkeypatch.setattr(PRUNERS, "_records", dict(PRUNERS._records))


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


def test_keywords_that_a_function_takes():
    assert taken(lambda weight, *, a, b=1: None, {"a": 1, "c": 2}) == {"a": 1}
