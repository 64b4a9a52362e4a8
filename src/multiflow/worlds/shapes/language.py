"""Captions of scenes from a small grammar.

    caption    = [opening] item ("," item)* "and" item ["," "the" object relation "the" object] ["on a ... background"]
               | [opening] object relation object ["on a ... background"]
    item       = number [size] [fill] colour shape [place ("and" place)*]

Every caption names all objects with shape and colour; size, fill and place as many as keep it near 26 words at most,
and always the one that sets the scene apart from its distractor. Objects that would be named alike are counted
("two red discs"). ``oracle.py`` reads captions back.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple, TypeVar

from multiflow.worlds.shapes.lexicon import (
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    FILL_WORDS,
    LONG,
    NOUNS,
    NUMBERS,
    OPENINGS,
    RELATIONS,
    SHORT,
    SIZE_WORDS,
    plural,
)
from multiflow.worlds.shapes.scene import Object, Scene, relation

_T = TypeVar("_T")
_ROOM = 20  # words that leave room for an opening or for the background


class _Plan(NamedTuple):
    """What a caption tells beside shape and colour, and how."""

    size: bool
    fill: bool
    place: str  # "" | "long" ("at the top left") | "short" ("top left")
    relation: bool


def describe(scene: Scene, count: int = 5) -> list[str]:
    """Return ``count`` captions of a scene, a pure function of the scene; distinct as far as the grammar goes.

    >>> from multiflow.worlds.shapes import Object, Scene
    >>> describe(Scene((Object("star", "red", "small", "solid", 0.5, 0.2, 0.1),), "grey", "plain", seed=3), count=1)
    ['a small filled red star at the top center on a grey background']
    """
    rng = Random(scene.seed ^ 0x5EED)
    captions: list[str] = []
    for _ in range(4 * count):
        if len(captions) == count:
            return captions
        caption = _caption(scene, rng)
        if caption not in captions:
            captions.append(caption)
    return captions + [_caption(scene, rng) for _ in range(count - len(captions))]


def name(obj: Object, rng: Random, *, size: bool = True, fill: bool = True, count: int = 1) -> str:
    """Return the words for an object without article: "large striped red disc"."""
    noun = pick(rng, NOUNS[obj.shape])
    words = [pick(rng, COLOUR_WORDS[obj.colour]), noun if count == 1 else plural(noun)]
    if fill:
        words.insert(0, pick(rng, FILL_WORDS[obj.fill]))
    if size:
        words.insert(0, pick(rng, SIZE_WORDS[obj.size]))
    return " ".join(words)


def article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def pick(rng: Random, items: Sequence[_T]) -> _T:
    """Return a random item; uses nothing of the generator but ``random()``."""
    return items[int(rng.random() * len(items))]


def _caption(scene: Scene, rng: Random) -> str:
    objects = sorted(scene.objects, key=lambda _: rng.random())
    plan = _plan(len(objects), scene.contrast, rng)
    looks = [_look(o, plan) for o in objects]
    if plan.relation:
        pair = _tellable(objects, looks)
        if pair is None:
            plan = plan._replace(place="short" if len(objects) > 2 else "long", relation=False)
        elif len(objects) == 2:
            a, b = (article(name(o, rng, size=plan.size, fill=plan.fill)) for o in objects)
            text = f"{a} {pick(rng, RELATIONS[relation(*objects)])} {b}"
            return _finish(text, scene, rng, plural_first=False)
    items = _items(objects, looks, plan, rng)
    text = items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
    if plan.relation and pair:
        a, b = (o.shape if _alone(o, objects) else f"{o.colour} {o.shape}" for o in pair)
        text += f", the {a} {pick(rng, RELATIONS[relation(*pair)])} the {b}"
    return _finish(text, scene, rng, plural_first=looks.count(looks[0]) > 1)


def _plan(n: int, contrast: str, rng: Random) -> _Plan:
    """Choose what to tell of ``n`` objects: the fewer there are, the more of each."""
    both = n == 1 or contrast == "swap" or rng.random() < (0.6, 0.45, 0.4)[n - 2]
    size = both or (rng.random() < 0.5 if contrast not in ("size", "fill") else contrast == "size")
    fill = both or not size
    place, related, chance = "", False, rng.random()
    if n == 1 or contrast == "place" or (contrast == "swap" and n > 2):
        place = "long"
    elif n == 2:
        related = chance < 0.5
        place = "" if related or (both and chance < 0.6 and contrast != "swap") else "long"
    elif both:
        related = n == 3 and chance < 0.2
        place = "short" if 0.2 <= chance < 0.7 or contrast == "swap" else ""
    else:
        related = chance < 0.35
        place = "" if related else "long" if n == 3 and chance < 0.7 else "short"
    if n == 4 or (n == 3 and both):
        place = place and "short"
    return _Plan(size, fill, place, related)


def _look(obj: Object, plan: _Plan) -> tuple[str, str, str, str]:
    return obj.shape, obj.colour, obj.size if plan.size else "", obj.fill if plan.fill else ""


def _alone(obj: Object, objects: list[Object]) -> bool:
    return sum(o.shape == obj.shape for o in objects) == 1


def _tellable(objects: list[Object], looks: list[tuple[str, str, str, str]]) -> tuple[Object, Object] | None:
    """Return the first two objects that no other one is named like: in a pair by look, else by shape and colour."""
    keys: list[tuple[str, ...]] = [look if len(objects) == 2 else look[:2] for look in looks]
    single = [o for o, key in zip(objects, keys, strict=True) if keys.count(key) == 1]
    return (single[0], single[1]) if len(single) > 1 else None


def _items(objects: list[Object], looks: list[tuple[str, str, str, str]], plan: _Plan, rng: Random) -> list[str]:
    """Return one phrase for every look, with the number of objects that have it and their places."""
    places = LONG if plan.place == "long" else SHORT
    full = bool(plan.place) and plan.size and plan.fill and len(objects) == 4  # no room for articles
    items = []
    for look in dict.fromkeys(looks):
        members = [o for o, other in zip(objects, looks, strict=True) if other == look]
        count = len(members)
        text = name(members[0], rng, size=plan.size, fill=plan.fill, count=count)
        if count > 1:
            text = f"{NUMBERS[count]} {text}"
        elif not full:
            text = article(text)
        if plan.place:
            text += " " + " and ".join(pick(rng, places[o.cell]) for o in members)
        items.append(text)
    return items


def _finish(text: str, scene: Scene, rng: Random, *, plural_first: bool) -> str:
    """Add an opening, the background or nothing, as far as there is room."""
    chance = rng.random()
    if text.count(" ") >= _ROOM:
        return text
    if chance < 0.35:
        opening = pick(rng, OPENINGS)
        return f"{'there are' if plural_first and opening == 'there is' else opening} {text}"
    if chance < 0.55:
        return f"{text} on a {pick(rng, BACKGROUND_WORDS[scene.background])} background"
    return text
