"""Questions about a scene that have exactly one right answer."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from multiflow.worlds.shapes.language import article, pick
from multiflow.worlds.shapes.lexicon import COLOUR_WORDS, NOUNS, PLACES, RELATIONS, plural
from multiflow.worlds.shapes.scene import COLOURS, SHAPES, Object, Scene, relation

KINDS = ("yes/no", "count", "colour", "shape", "where")
#: The words of questions and answers that captions do not use.
FRAMES = ("how many objects are there", "is there", "what color shape is the object", "where", "yes no", "0 1 2 3 4")


class Question(NamedTuple):
    """A question, its answer, and its kind (one of KINDS)."""

    question: str
    answer: str
    kind: str


def questions(scene: Scene) -> list[Question]:
    """Return every question that the scene decides, a pure function of the scene; about 4 for each object."""
    rng = Random(scene.seed ^ 0xA5C)
    return [*_count(scene, rng), *_exists(scene, rng), *_relations(scene, rng), *_single(scene, rng)]


def _count(scene: Scene, rng: Random) -> Iterator[Question]:
    total = len(scene.objects)
    yield Question("how many objects are there?", str(total), "count")
    obj = pick(rng, scene.objects)
    n = sum(o.shape == obj.shape for o in scene.objects)
    yield Question(f"how many {plural(pick(rng, NOUNS[obj.shape]))} are there?", str(n), "count")
    colour = obj.colour if rng.random() < 0.7 else pick(rng, COLOURS)
    n = sum(o.colour == colour for o in scene.objects)
    yield Question(f"how many {pick(rng, COLOUR_WORDS[colour])} objects are there?", str(n), "count")


def _exists(scene: Scene, rng: Random) -> Iterator[Question]:
    """One question to say yes to, and one to say no to that is right in either colour or shape."""
    obj = pick(rng, scene.objects)
    here = {(o.colour, o.shape) for o in scene.objects}
    wrong = [(c, obj.shape) for c in COLOURS] if rng.random() < 0.5 else [(obj.colour, s) for s in SHAPES]
    for (colour, shape), answer in (
        ((obj.colour, obj.shape), "yes"),
        (pick(rng, [look for look in wrong if look not in here]), "no"),
    ):
        thing = article(f"{pick(rng, COLOUR_WORDS[colour])} {pick(rng, NOUNS[shape])}")
        yield Question(f"is there {thing}?", answer, "yes/no")


def _relations(scene: Scene, rng: Random) -> Iterator[Question]:
    """Whether one object is left of, above ... another: the true relation or its opposite."""
    pairs = [(a, b) for a in scene.objects for b in scene.objects if a is not b and _known(a, b, scene)]
    if not pairs:
        return
    a, b = pick(rng, pairs)
    true = relation(a, b)
    asked = true if rng.random() < 0.5 else {"left": "right", "right": "left", "above": "below", "below": "above"}[true]
    text = f"is the {_reference(a, scene, rng)} {pick(rng, RELATIONS[asked])} the {_reference(b, scene, rng)}?"
    yield Question(text, "yes" if asked == true else "no", "yes/no")


def _single(scene: Scene, rng: Random) -> Iterator[Question]:
    """Colour, shape and place of the objects that can be pointed at without saying the answer."""
    for obj in scene.objects:
        noun = pick(rng, NOUNS[obj.shape])
        if _sole(scene, shape=obj.shape):
            yield Question(f"what color is the {noun}?", obj.colour, "colour")
        if _sole(scene, colour=obj.colour):
            yield Question(f"what shape is the {pick(rng, COLOUR_WORDS[obj.colour])} object?", obj.shape, "shape")
        if _known(obj, obj, scene):
            yield Question(f"where is the {_reference(obj, scene, rng)}?", PLACES[obj.cell], "where")
    obj = pick(rng, scene.objects)
    asked, answer = ("color", obj.colour) if rng.random() < 0.5 else ("shape", obj.shape)
    kind = "colour" if asked == "color" else "shape"
    where = PLACES[obj.cell]
    yield Question(f"what {asked} is the object {'in' if where == 'center' else 'at'} the {where}?", answer, kind)


def _sole(scene: Scene, **attributes: str) -> bool:
    return sum(all(getattr(o, k) == v for k, v in attributes.items()) for o in scene.objects) == 1


def _known(a: Object, b: Object, scene: Scene) -> bool:
    return all(_sole(scene, shape=o.shape, colour=o.colour) for o in (a, b))


def _reference(obj: Object, scene: Scene, rng: Random) -> str:
    """Name an object by shape alone where that is enough, else by colour and shape."""
    noun = pick(rng, NOUNS[obj.shape])
    if _sole(scene, shape=obj.shape) and rng.random() < 0.5:
        return noun
    return f"{pick(rng, COLOUR_WORDS[obj.colour])} {noun}"
