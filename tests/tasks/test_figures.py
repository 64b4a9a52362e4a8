from __future__ import annotations

import json
import pickle

from multiflow.metrics import Figures


def test_figures_are_a_dict_that_knows_each_item():
    figures = Figures({"accuracy": 75.0, "listed": 80.0}, (x for x in (100, 50)))
    assert figures == {"accuracy": 75.0, "listed": 80.0}
    assert figures.each == (100.0, 50.0)
    assert all(type(x) is float for x in figures.each)
    assert json.loads(json.dumps(figures)) == figures


def test_figures_travel_between_processes():
    figures = pickle.loads(pickle.dumps(Figures({"top-1": 50.0}, [0, 100])))
    assert (type(figures), figures, figures.each) == (Figures, {"top-1": 50.0}, (0.0, 100.0))
