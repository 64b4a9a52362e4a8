"""The symbolic oracle: reads a caption back and says how well it fits a scene, without knowing where it came from.

A caption is read by the longest phrases of the lexicon, left to right: adjectives and a noun make an object, a number
makes several, a place belongs to the object before it, and a relation joins the objects on both sides of it.

    score(caption, scene) = max over the ways to match objects: facts that hold - 32 * facts that do not

A fact is one named shape, colour, size, fill, place, relation or background; an object too many or too few is one that
does not hold. With true captions the best score of a scene is that of a caption that says most about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations

from multiflow.base.errors import MultiflowError
from multiflow.worlds.shapes.language import PHRASES
from multiflow.worlds.shapes.scene import Object, Scene

_LONGEST = max(len(phrase.split()) for phrase in PHRASES)
_WRONG = 32  # more than there are facts in a caption: one that does not hold outweighs all that do


@dataclass
class Mention:
    """What a caption says about one object: any of shape, colour, size, fill, cell."""

    facts: dict[str, str | int] = field(default_factory=dict)

    def agreement(self, obj: Object) -> int:
        """Facts that hold for an object, less the weighted ones that do not."""
        right = sum(getattr(obj, kind) == value for kind, value in self.facts.items())
        return right - _WRONG * (len(self.facts) - right)


@dataclass
class Reading:
    """A caption read back: its objects, relations as (object, relation, object) by number, and the background."""

    mentions: list[Mention]
    relations: list[tuple[int, str, int]]
    background: str = ""

    @property
    def key(self) -> tuple[tuple[str | int, ...], ...]:
        """Colours and shapes of all objects, sorted."""
        return tuple(sorted((m.facts.get("colour", ""), m.facts.get("shape", "")) for m in self.mentions))


def parse(caption: str) -> Reading:
    """Read a caption of the Shapes grammar back.

    >>> parse("two red discs above a blue star").mentions[0].facts
    {'colour': 'red', 'shape': 'circle'}
    """
    reading = Reading([], [])
    facts: dict[str, str | int] = {}
    count, refers = 1, False
    group: list[int] = []  # the objects of the last noun
    placed = 0
    pending: tuple[int, str] | None = None  # a relation that waits for its second object
    for kind, value in _phrases(caption):
        if kind == "number":
            count, refers = int(value), False
        elif kind == "reference":
            refers = True
        elif kind in ("size", "fill", "colour"):
            facts[kind] = value
        elif kind == "shape":
            facts["shape"] = value
            if refers:
                group = [_find(reading.mentions, facts, caption)]
            else:
                reading.mentions += [Mention(dict(facts)) for _ in range(count)]
                group = list(range(len(reading.mentions) - count, len(reading.mentions)))
            if pending:
                reading.relations.append((*pending, group[0]))
            facts, count, refers, placed, pending = {}, 1, False, 0, None
        elif kind == "place" and placed < len(group):
            reading.mentions[group[placed]].facts["cell"] = value
            placed += 1
        elif kind == "relation" and group:
            pending = group[0], str(value)
        elif kind == "background":
            reading.background = str(value)
    return reading


def score(caption: str, scene: Scene) -> float:
    """Return how well a caption fits a scene: more for every fact that holds, much less for one that does not."""
    return _score(parse(caption), scene)


def _phrases(caption: str) -> list[tuple[str, str | int]]:
    words = caption.replace(",", " ").replace(".", " ").lower().split()
    found, at = [], 0
    while at < len(words):
        for length in range(min(_LONGEST, len(words) - at), 0, -1):
            meaning = PHRASES.get(" ".join(words[at : at + length]))
            if meaning:
                found.append(meaning)
                break
        at += length if meaning else 1
    return found


def _find(mentions: list[Mention], facts: dict[str, str | int], caption: str) -> int:
    for number, mention in enumerate(mentions):
        if facts.items() <= mention.facts.items():
            return number
    raise MultiflowError(
        f"caption '{caption}' refers to {' '.join(str(v) for v in facts.values())}, which it does not name before; "
        "name every object once with 'a' before 'the'"
    )


def _score(reading: Reading, scene: Scene) -> float:
    mentions, objects = reading.mentions, scene.objects
    rest = 0.0 if not reading.background else 1.0 if reading.background == scene.background else -_WRONG
    rest -= _WRONG * abs(len(mentions) - len(objects))
    short = min(len(mentions), len(objects))
    return rest + max(
        sum(mentions[i].agreement(objects[j]) for i, j in zip(said, seen, strict=True))
        + _related(reading, {i: objects[j] for i, j in zip(said, seen, strict=True)})
        for said in ([tuple(range(short))] if short == len(mentions) else permutations(range(len(mentions)), short))
        for seen in permutations(range(len(objects)), short)
    )


def _related(reading: Reading, matched: dict[int, Object]) -> int:
    total = 0
    for i, word, j in reading.relations:
        holds = i in matched and j in matched and _holds(matched[i], word, matched[j])
        total += 1 if holds else -_WRONG
    return total


def _holds(a: Object, word: str, b: Object) -> bool:
    return {"left": a.x < b.x, "right": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[word]
