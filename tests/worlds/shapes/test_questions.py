from __future__ import annotations

import re
from collections import Counter

import pytest

from multiflow.worlds.shapes import COLOURS, SHAPES, VOCABULARY, Object, Scene, make_scenes, questions
from multiflow.worlds.shapes.lexicon import PHRASES, PLACES, RELATIONS
from multiflow.worlds.shapes.questions import KINDS

SCENE = Scene(
    (
        Object("circle", "red", "small", "solid", x=0.2, y=0.2, radius=0.11),
        Object("circle", "blue", "small", "solid", x=0.8, y=0.2, radius=0.11),
        Object("star", "red", "large", "striped", x=0.5, y=0.8, radius=0.17),
    ),
    "grey",
    "plain",
    seed=0,
)


def concept(word: str, kind: str) -> str | None:
    """What a word of a question means, or None where it is of another kind."""
    found, value = PHRASES.get(word, ("", ""))
    return str(value) if found == kind else None


def matching(text: str, scene: Scene) -> list[Object]:
    """The objects that have every colour, shape and place named in a text."""
    shapes, colours = ([c for w in text.split() if (c := concept(w, kind))] for kind in ("shape", "colour"))
    place = re.search(r" (?:at|in) the ([a-z ]+)$", text)
    return [
        o
        for o in scene.objects
        if all(o.shape == s for s in shapes)
        and all(o.colour == c for c in colours)
        and (place is None or PLACES[o.cell] == place[1])
    ]


def solve(question: str, scene: Scene) -> str:
    """Answer a question from its words, written apart from the generator."""
    text = question.removesuffix("?")
    if text == "how many objects are there":
        return str(len(scene.objects))
    if text.startswith("how many"):
        return str(len(matching(text, scene)))
    if text.startswith("is there"):
        return "yes" if matching(text, scene) else "no"
    for relation, phrases in RELATIONS.items():
        for phrase in phrases:
            if text.startswith("is the ") and f" {phrase} the " in text:
                first, second = text.split(f" {phrase} the ")
                (a,), (b,) = matching(first, scene), matching(second, scene)
                true = {"left": a.x < b.x, "right": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
                return "yes" if true[relation] else "no"
    (obj,) = matching(text, scene)
    return PLACES[obj.cell] if text.startswith("where") else obj.colour if "what color" in text else obj.shape


@pytest.mark.parametrize("style", ["plain", "chalk"])
def test_answers_are_right_and_unambiguous(style: str) -> None:
    seen = Counter()
    for scene in make_scenes("train", 400, style=style):
        for question, answer, kind in questions(scene):
            assert solve(question, scene) == answer, question
            seen[kind] += 1
    assert set(seen) == set(KINDS)
    assert min(seen.values()) > 400


def test_questions_depend_on_the_scene_alone() -> None:
    for scene in make_scenes("val", 20):
        asked = questions(scene)
        assert asked == questions(scene)
        assert len({q.question for q in asked}) >= len(asked) - 2


def test_answers_are_of_their_kind() -> None:
    allowed = {"yes/no": {"yes", "no"}, "count": set("01234"), "colour": set(COLOURS), "shape": set(SHAPES)}
    allowed["where"] = set(PLACES)
    for scene in make_scenes("val", 100):
        for question, answer, kind in questions(scene):
            assert answer in allowed[kind]
            assert question.endswith("?")
            assert set(question.removesuffix("?").split()) <= set(VOCABULARY)


def test_yes_and_no_are_balanced() -> None:
    answers = Counter(q.answer for s in make_scenes("train", 1000) for q in questions(s) if q.kind == "yes/no")
    assert 0.45 < answers["yes"] / answers.total() < 0.55


def test_nothing_is_asked_that_the_scene_leaves_open() -> None:
    asked = {q.question for seed in range(50) for q in questions(Scene(SCENE.objects, "grey", "plain", seed))}
    assert not {"what color is the circle?", "where is the circle?", "what shape is the red object?"} & asked
    assert {"what color is the star?", "what shape is the blue object?", "where is the star?"} <= asked
