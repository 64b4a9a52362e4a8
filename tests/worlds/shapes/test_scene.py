from __future__ import annotations

from dataclasses import replace

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.worlds.shapes import Object, Scene
from multiflow.worlds.shapes.scene import relation

RED = Object("star", "red", "small", "solid", x=0.2, y=0.2, radius=0.1)
BLUE = Object("circle", "blue", "large", "striped", x=0.8, y=0.5, radius=0.17)


@pytest.mark.parametrize(
    ("x", "y", "cell"), [(0.0, 0.0, 0), (0.34, 0.0, 1), (0.99, 0.3, 2), (0.5, 0.5, 4), (1.0, 1.0, 8), (0.1, 0.7, 6)]
)
def test_cells_run_row_by_row(x: float, y: float, cell: int) -> None:
    assert replace(RED, x=x, y=y).cell == cell


def test_box_is_twice_the_radius() -> None:
    assert BLUE.box == (0.8, 0.5, 0.34, 0.34)


def test_identity_leaves_out_all_but_objects_and_rough_places() -> None:
    scene = Scene((RED, BLUE), "grey", "plain", seed=1)
    same = Scene((BLUE, replace(RED, x=0.25, radius=0.11)), "black", "chalk", seed=2, contrast="fill")
    assert scene.identity == same.identity
    assert hash(scene.identity) == hash(same.identity)


@pytest.mark.parametrize(
    "change", [{"shape": "moon"}, {"colour": "pink"}, {"size": "large"}, {"fill": "outline"}, {"x": 0.5}]
)
def test_identity_tells_objects_and_places(change: dict) -> None:
    assert Scene((RED,), "grey", "plain", 1).identity != Scene((replace(RED, **change),), "grey", "plain", 1).identity


def test_relation_follows_the_longer_axis() -> None:
    assert relation(RED, BLUE) == "left"
    assert relation(BLUE, RED) == "right"
    assert relation(RED, replace(BLUE, x=0.3)) == "above"
    assert relation(replace(BLUE, x=0.3), RED) == "below"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "sqare"}, "unknown shape 'sqare'.*did you mean 'square'"),
        ({"colour": "bleu"}, "unknown colour 'bleu'"),
        ({"size": "huge"}, "unknown size 'huge'; known: small, large"),
        ({"fill": "strip"}, "unknown fill 'strip'"),
    ],
)
def test_unknown_attributes(change: dict, message: str) -> None:
    with pytest.raises(MultiflowError, match=message):
        replace(RED, **change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((RED,), "grey", "chalky", 0), "unknown style 'chalky'.*did you mean 'chalk'"),
        (((RED,), "white", "chalk", 0), "unknown background of style chalk 'white'"),
        (((), "grey", "plain", 0), "a scene of 0 objects was given"),
        (((RED,) * 5, "grey", "plain", 0), "a scene of 5 objects was given, 1 to 4 were expected"),
    ],
)
def test_impossible_scenes(values: tuple, message: str) -> None:
    with pytest.raises(MultiflowError, match=message):
        Scene(*values)
