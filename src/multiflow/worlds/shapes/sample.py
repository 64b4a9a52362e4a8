"""Scenes by number: scene i of a split is a pure function of (seed, split, style, i, max_objects).

Every block of 8 scenes opens with two that differ in one thing only (a distractor pair), followed by six that are
drawn alone. The hash of a scene's identity says which split it belongs to, so no identity is in two splits, whatever
the seed and the style. One-object scenes are few, so they are dealt from a shuffled deck: none comes twice before all
have come once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from random import Random
from typing import TypeVar

from multiflow.base.errors import MultiflowError, unknown
from multiflow.worlds.shapes.scene import (
    COLOURS,
    FILLS,
    GRID,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    STYLE_BACKGROUNDS,
    STYLES,
    Identity,
    Object,
    Scene,
)

SPLITS = ("train", "val", "test")
BLOCK = 8  # scenes a block; the first two are a distractor pair
_COUNTS = {1: (1,) * 6, 2: (1, 2, 2, 2, 2, 2), 3: (1, 2, 2, 3, 3, 3), 4: (1, 2, 2, 3, 3, 4)}  # objects of the other six
_RADIUS = {"small": 0.11, "large": 0.17}
_JITTER = 0.05  # relative, of the radius
_GAP = 0.02  # between bounding boxes, and to the border
_MARGIN = 0.03  # of a centre to the border of its cell: what the words call "left" is clearly left
_TRIES = 8

_Draft = tuple[str, str, str, str, int]
_T = TypeVar("_T")


def split_of(identity: Identity) -> str:
    """Return the split that a scene identity belongs to: "train" (8 of 10), "val" or "test" (1 of 10 each)."""
    digest = blake2b(repr(identity).encode(), digest_size=8).digest()
    return ("test", "val", *("train",) * 8)[int.from_bytes(digest, "little") % 10]


def make_scenes(
    split: str, count: int, *, seed: int = 0, style: str = "plain", start: int = 0, max_objects: int = MAX_OBJECTS
) -> list[Scene]:
    """Return the scenes ``start`` to ``start + count - 1`` of a split ("train", "val" or "test").

    >>> make_scenes("val", 3, start=5) == make_scenes("val", 8)[5:]
    True
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if style not in STYLES:
        raise unknown("style", style, STYLES)
    if max_objects not in _COUNTS:
        raise MultiflowError(f"max_objects={max_objects} was given, 1 to {MAX_OBJECTS} was expected; pass one of them")
    for name, value in (("count", count), ("start", start), ("seed", seed)):
        if value < 0:
            raise MultiflowError(f"{name}={value} was given, 0 or more was expected; pass a whole number from 0 on")
    return [_scene(split, index, seed, style, max_objects) for index in range(start, start + count)]


def _scene(split: str, index: int, seed: int, style: str, max_objects: int) -> Scene:
    block, slot = divmod(index, BLOCK)
    paired = slot < 2
    name = f"{seed}/{split}/{style}/{max_objects}/{f'pair {block}' if paired else index}"
    key = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")
    rng = Random(key)  # only .random() is used: Python promises its sequence for good
    background = _pick(rng, STYLE_BACKGROUNDS[style])
    if paired:
        pair, contrast = _pair(rng, split, max_objects)
        return Scene(pair[slot], background, style, key, contrast)
    counts = _COUNTS[max_objects]
    n = counts[slot - 2]
    if n > 1:
        return Scene(_draw(rng, split, n), background, style, key)
    deck = _deck(split, seed, style)
    objects = None
    while objects is None:
        objects = _place(rng, [deck[(block * counts.count(1) + slot - 2) % len(deck)]])
    return Scene(objects, background, style, key)


def _pick(rng: Random, items: Sequence[_T]) -> _T:
    return items[int(rng.random() * len(items))]


@lru_cache(maxsize=16)
def _deck(split: str, seed: int, style: str) -> list[_Draft]:
    """All one-object identities of a split, shuffled."""
    cards = [card for card in product(SHAPES, COLOURS, SIZES, FILLS, range(GRID**2)) if split_of((card,)) == split]
    rng = Random(seed * len(STYLES) + STYLES.index(style))
    order = sorted((rng.random(), card) for card in cards)
    return [card for _, card in order]


def _draw(rng: Random, split: str, n: int) -> tuple[Object, ...]:
    """Draw ``n`` objects until they fit into the image and belong to the split."""
    while True:
        looks: list[tuple[str, str, str, str]] = []
        again = 0.06 if n == 2 else 0.25  # something to count; two of a kind alone are few, and would come twice
        for _ in range(n):
            look = (_pick(rng, SHAPES), _pick(rng, COLOURS), _pick(rng, SIZES), _pick(rng, FILLS))
            if looks and rng.random() < again:
                look = looks[-1] if rng.random() < 0.5 else looks[-1][:2] + look[2:]
            looks.append(look)
        free = list(range(GRID**2))
        drafts = [(*look, free.pop(int(rng.random() * len(free)))) for look in looks]
        if split_of(tuple(sorted(drafts))) == split and (objects := _place(rng, drafts)):
            return objects


def _place(rng: Random, drafts: Sequence[_Draft], beside: tuple[Object, ...] = ()) -> tuple[Object, ...] | None:
    """Give every draft a radius and a centre in its cell, clear of all others; None if they do not fit."""
    for _ in range(_TRIES):
        placed = beside
        for shape, colour, size, fill, cell in drafts:
            radius = _RADIUS[size] * (1 + _JITTER * (2 * rng.random() - 1))
            row, column = divmod(cell, GRID)
            x, y = _coordinate(rng, column, radius), _coordinate(rng, row, radius)
            placed = (*placed, Object(shape, colour, size, fill, x, y, radius))
            if not _clear(placed[-1], placed[:-1]):
                break
        else:
            return placed
    return None


def _coordinate(rng: Random, cell: int, radius: float) -> float:
    low = max(cell / GRID + _MARGIN, radius + _GAP)
    high = min((cell + 1) / GRID - _MARGIN, 1 - radius - _GAP)
    return low + (high - low) * rng.random()


def _clear(a: Object, others: tuple[Object, ...]) -> bool:
    """Whether an object's box keeps its distance from all others and from the border."""
    r = a.radius + _GAP
    if not (r <= a.x <= 1 - r and r <= a.y <= 1 - r):
        return False
    return all(max(abs(a.x - b.x), abs(a.y - b.y)) >= r + b.radius for b in others)


def _pair(rng: Random, split: str, max_objects: int) -> tuple[tuple[tuple[Object, ...], tuple[Object, ...]], str]:
    """Draw two lists of objects of one split that differ in one thing; return them and what it is.

    Half of the pairs differ in an attribute, 3 of 10 in a relation (two objects swapped, or one elsewhere), 2 of 10 in
    a count; with one object at most, all in an attribute.
    """
    family = 0.0 if max_objects == 1 else rng.random()
    contrasts = (
        ("shape", "colour", "size", "fill") if family < 0.5 else ("swap", "place") if family < 0.8 else ("count",)
    )
    most = max_objects - (contrasts == ("count",))  # room for one more
    least = min(2, most)
    while True:
        first = _draw(rng, split, least + int(rng.random() * (most - least + 1)))
        for _ in range(2 * _TRIES):
            contrast = _pick(rng, contrasts)
            second = _change(rng, first, contrast)
            if second and split_of(Scene(second, "grey", "plain", 0).identity) == split:
                return ((first, second) if rng.random() < 0.5 else (second, first)), contrast


def _change(rng: Random, objects: tuple[Object, ...], contrast: str) -> tuple[Object, ...] | None:
    """Change one thing of a list of objects; None where the change does not fit."""
    i = int(rng.random() * len(objects))
    chosen, rest = objects[i], objects[:i] + objects[i + 1 :]
    look = (chosen.shape, chosen.colour, chosen.size, chosen.fill)
    if contrast == "swap":
        other = _pick(rng, rest)
        if look == (other.shape, other.colour, other.size, other.fill):
            return None
        changed, partner = replace(chosen, x=other.x, y=other.y), replace(other, x=chosen.x, y=chosen.y)
        moved = tuple(changed if o is chosen else partner if o is other else o for o in objects)
        return moved if all(_clear(o, tuple(p for p in moved if p is not o)) for o in moved) else None
    if contrast in ("place", "count"):
        cell = _pick(rng, [c for c in range(GRID**2) if all(c != o.cell for o in objects)])
        return _place(rng, [(*look, cell)], beside=rest if contrast == "place" else objects)
    known = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "fill": FILLS}[contrast]
    value = _pick(rng, [v for v in known if v != getattr(chosen, contrast)])
    radius = _RADIUS[value] if contrast == "size" else chosen.radius
    changed = Object(**{**vars(chosen), contrast: value, "radius": radius})
    return (*objects[:i], changed, *objects[i + 1 :]) if _clear(changed, rest) else None
