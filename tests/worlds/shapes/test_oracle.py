from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from multiflow.base.errors import MultiflowError
from multiflow.worlds.shapes import STYLES, Object, Scene, describe, make_scenes
from multiflow.worlds.shapes.oracle import parse, score

DISC = Object("circle", "red", "small", "solid", x=0.2, y=0.2, radius=0.11)
STAR = Object("star", "blue", "large", "striped", x=0.8, y=0.8, radius=0.17)
SCENE = Scene((DISC, STAR), "grey", "plain", seed=0)


def scores_of(captions: list[str], scenes: list[Scene]) -> np.ndarray:
    """Scores (captions, scenes); of pairs whose colours and shapes differ, -inf: none of them fits."""
    by_key: dict[Any, list[int]] = {}
    for column, scene in enumerate(scenes):
        by_key.setdefault(tuple(sorted((o.colour, o.shape) for o in scene.objects)), []).append(column)
    scores = np.full((len(captions), len(scenes)), -np.inf)
    for row, caption in enumerate(captions):
        for column in by_key.get(parse(caption).key, ()):
            scores[row, column] = score(caption, scenes[column])
    return scores


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_oracle_retrieves_nearly_everything(split: str, style: str) -> None:
    """500 scenes x 5 captions; a tie counts as a miss."""
    scenes = make_scenes(split, 500, style=style)
    captions = [caption for scene in scenes for caption in describe(scene)]
    owner = np.repeat(np.arange(500), 5)
    scores = scores_of(captions, scenes)
    own = scores[np.arange(2500), owner]
    others = scores.copy()
    others[np.arange(2500), owner] = -np.inf
    assert (own > 0).all()
    assert (own > others.max(1)).mean() >= 0.95  # IR@1
    best = own.reshape(500, 5).max(1)
    assert (best > others.max(0)).mean() >= 0.95  # TR@1


@pytest.mark.parametrize(
    ("caption", "facts"),
    [
        ("a small solid red circle and a large striped blue star", 8),
        ("a picture of a little red disc in the upper left corner and a blue star at the bottom right", 7),
        ("a red circle left of a blue star", 5),
        ("a red circle above a blue star on a grey background", 6),
        ("a blue star, a red circle", 4),
    ],
)
def test_true_captions_score_their_facts(caption: str, facts: int) -> None:
    assert score(caption, SCENE) == facts


@pytest.mark.parametrize(
    "caption",
    [
        "a large red circle and a blue star",
        "a red circle and a striped green star",
        "a red circle right of a blue star",
        "a blue star to the left of a red circle",
        "a red circle at the top right and a blue star",
        "two red circles and a blue star",
        "a red circle",
        "a red circle and a blue star on a black background",
    ],
)
def test_false_captions_score_below_zero(caption: str) -> None:
    assert score(caption, SCENE) < 0


def test_places_of_a_group_and_references() -> None:
    text = "two big red boxes top left and in the middle and a hollow violet moon, the moon under the red square"
    reading = parse(text)
    box = {"size": "large", "colour": "red", "shape": "square"}
    assert [m.facts for m in reading.mentions] == [
        {**box, "cell": 0},
        {**box, "cell": 4},
        {"fill": "outline", "colour": "purple", "shape": "moon"},
    ]
    assert reading.relations == [(2, "below", 0)]


def test_an_unknown_reference() -> None:
    with pytest.raises(MultiflowError, match="refers to green star"):
        parse("a red star and a red moon, the green star above the moon")


def test_the_oracle_does_not_see_seeds() -> None:
    """The same scene under another seed and in the other style scores the same."""
    for scene in make_scenes("val", 24):
        for caption in describe(scene):
            if "background" not in caption:
                assert score(caption, scene) == score(caption, Scene(scene.objects, "black", "chalk", seed=1))
