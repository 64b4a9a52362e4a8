"""Scenes of the Shapes world: what they hold, and scene i of a split as a pure function of its number.

Every block of 8 scenes opens with two that differ in one thing only (a distractor pair), followed by six that are
independent of each other. The hash of a scene's identity says which split it belongs to, so no identity is in two
splits, whatever the seed and the style. One-object scenes are few, so they are dealt from a shuffled deck: none comes
twice before all have come once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import product
from random import Random
from typing import TypeVar

from multiflow.base.errors import MultiflowError, unknown

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "moon")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
FILLS = ("solid", "outline", "striped")
STYLES = ("plain", "chalk")
BACKGROUNDS = ("white", "grey", "black", "gradient", "checked", "speckled")
#: The backgrounds of each style: chalk is drawn on dark boards only.
STYLE_BACKGROUNDS = {"plain": BACKGROUNDS, "chalk": BACKGROUNDS[1:]}
MAX_OBJECTS = 4
#: Positions are named by the cells of a GRID x GRID raster, numbered row by row from the top left.
GRID = 3

Identity = tuple[tuple[str, str, str, str, int], ...]

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


@dataclass(frozen=True)
class Object:
    """One object; centre and half extent are fractions of the image, y grows downwards.

    >>> Object("star", "red", "small", "solid", x=0.5, y=0.2, radius=0.1).cell
    1
    """

    shape: str
    colour: str
    size: str
    fill: str
    x: float
    y: float
    radius: float

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("shape", self.shape, SHAPES),
            ("colour", self.colour, COLOURS),
            ("size", self.size, SIZES),
            ("fill", self.fill, FILLS),
        ):
            if given not in known:
                raise unknown(kind, given, known)

    @property
    def cell(self) -> int:
        """The raster cell of the centre, 0 (top left) to 8 (bottom right)."""
        return min(int(self.y * GRID), GRID - 1) * GRID + min(int(self.x * GRID), GRID - 1)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The bounding box as (cx, cy, width, height), fractions of the image."""
        return self.x, self.y, 2 * self.radius, 2 * self.radius


@dataclass(frozen=True)
class Scene:
    """Objects on a background, drawn in a style.

    ``seed`` decides everything that is not said: palette jitter, textures, the wording of captions.
    ``contrast`` is what sets the scene apart from its distractor ("shape", "colour", "size", "fill", "place", "swap"
    or "count"; empty where there is none): whoever describes the scene mentions it.
    """

    objects: tuple[Object, ...]
    background: str
    style: str
    seed: int
    contrast: str = ""

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise unknown("style", self.style, STYLES)
        if self.background not in STYLE_BACKGROUNDS[self.style]:
            raise unknown(f"background of style {self.style}", self.background, STYLE_BACKGROUNDS[self.style])
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise MultiflowError(
                f"a scene of {len(self.objects)} objects was given, 1 to {MAX_OBJECTS} were expected; pass that many"
            )

    @cached_property
    def identity(self) -> Identity:
        """What makes the scene the same scene: its objects with attributes and raster cells, background left out."""
        return tuple(sorted((o.shape, o.colour, o.size, o.fill, o.cell) for o in self.objects))


def relation(a: Object, b: Object) -> str:
    """How ``a`` lies to ``b`` along the axis that parts them most: "left", "right", "above" or "below"."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def pick(rng: Random, items: Sequence[_T]) -> _T:
    """Return a random item; uses nothing of the generator but ``random()``, whose sequence Python promises for good."""
    return items[int(rng.random() * len(items))]


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
    background = pick(rng, STYLE_BACKGROUNDS[style])
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
            look = (pick(rng, SHAPES), pick(rng, COLOURS), pick(rng, SIZES), pick(rng, FILLS))
            if looks and rng.random() < again:
                look = looks[-1] if rng.random() < 0.5 else looks[-1][:2] + look[2:]
            looks.append(look)
        free = list(range(GRID**2))
        drafts = [(*look, free.pop(int(rng.random() * len(free)))) for look in looks]
        if split_of(tuple(sorted(drafts))) == split and (objects := _place(rng, drafts)):
            return objects


def _place(rng: Random, drafts: Sequence[_Draft], others: tuple[Object, ...] = ()) -> tuple[Object, ...] | None:
    """Give every draft a radius and a centre in its cell, clear of all others; None if they do not fit."""
    for _ in range(_TRIES):
        placed = others
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
            contrast = pick(rng, contrasts)
            second = _change(rng, first, contrast)
            if second and split_of(Scene(second, "grey", "plain", 0).identity) == split:
                return ((first, second) if rng.random() < 0.5 else (second, first)), contrast


def _change(rng: Random, objects: tuple[Object, ...], contrast: str) -> tuple[Object, ...] | None:
    """Change one thing of a list of objects; None where the change does not fit."""
    i = int(rng.random() * len(objects))
    chosen, rest = objects[i], objects[:i] + objects[i + 1 :]
    look = (chosen.shape, chosen.colour, chosen.size, chosen.fill)
    if contrast == "swap":
        other = pick(rng, rest)
        if look == (other.shape, other.colour, other.size, other.fill):
            return None
        changed, partner = replace(chosen, x=other.x, y=other.y), replace(other, x=chosen.x, y=chosen.y)
        moved = tuple(changed if o is chosen else partner if o is other else o for o in objects)
        return moved if all(_clear(o, tuple(p for p in moved if p is not o)) for o in moved) else None
    if contrast in ("place", "count"):
        cell = pick(rng, [c for c in range(GRID**2) if all(c != o.cell for o in objects)])
        return _place(rng, [(*look, cell)], others=rest if contrast == "place" else objects)
    known = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "fill": FILLS}[contrast]
    value = pick(rng, [v for v in known if v != getattr(chosen, contrast)])
    radius = _RADIUS[value] if contrast == "size" else chosen.radius
    changed = Object(**{**vars(chosen), contrast: value, "radius": radius})
    return (*objects[:i], changed, *objects[i + 1 :]) if _clear(changed, rest) else None
