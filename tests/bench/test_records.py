from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.bench.records import Cell, Pruning, read_record

LINE = {
    "id": "a",
    "model": "m",
    "pruner": "p",
    "seed": 0,
    "calibration": 1.0,
    "selection": 0.5,
    "pairs": 8,
    "peak_memory": 100,
    "layers": [["vision.q", "vision", 4]],
    "zeros": {"0.75": [3]},
}


def test_a_pruning_of_before_versions_were_written_is_read():
    old = read_record(Pruning, LINE)
    assert (old.versions, old.git, old.machine) == ({}, None, "")
    assert (old.zeros, old.layers) == ({0.75: [3]}, [("vision.q", "vision", 4)])


def test_a_pruning_is_read_as_it_was_written():
    made = read_record(Pruning, {**LINE, "versions": {"torch": "2"}, "git": "abc+", "machine": "2 cores"})
    assert read_record(Pruning, json.loads(json.dumps(asdict(made)))) == made
    assert (made.versions, made.git, made.machine) == ({"torch": "2"}, "abc+", "2 cores")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        *(
            (Pruning, {**LINE, "extra": 1}),
            (Pruning, {"id": "a"}),
            (Cell, {"id": "a"}),
            (Pruning, {**LINE, "seed": "0"}),
        ),
        *((Pruning, {**LINE, "zeros": {"most": [3]}}), (Pruning, {**LINE, "layers": [["vision.q", 4]]})),
        *((Pruning, {**LINE, "zeros": {"0.75": [3, 3]}}), (Pruning, {**LINE, "zeros": {"0.75": [5]}})),
    ],
)
def test_a_line_of_another_version_is_an_error(kind, line):
    with pytest.raises(MultiflowError, match="compute the grid anew"):
        read_record(kind, line)
