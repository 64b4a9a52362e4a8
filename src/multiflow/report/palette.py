"""One fixed look a pruner: a colour of the page's palette and the shape of its marker.

The colours are told apart with any common colour vision, and every pruner of one colour has a marker of its own.
Red is not among them: it means collapse.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import NamedTuple

COLOURS = ("blue", "amber", "purple", "green", "teal", "brown", "ink", "grey")
MARKERS = ("circle", "square", "triangle", "diamond")


class Look(NamedTuple):
    """How a pruner is drawn: names of a colour in ``page.css`` and of a marker in ``svg.py``."""

    colour: str
    marker: str


DENSE = Look("ink", "circle")
LOOKS = {
    "multiflow": Look("blue", "circle"),
    "magnitude-modality": Look("amber", "square"),
    "magnitude": Look("purple", "triangle"),
    "random": Look("grey", "diamond"),
    "wanda": Look("green", "circle"),
    "ria": Look("teal", "square"),
    "lamp": Look("brown", "circle"),
    "l2": Look("brown", "diamond"),
    "magnitude-layer": Look("amber", "triangle"),
    "snip": Look("green", "triangle"),
    "itersnip": Look("green", "diamond"),
    "chita": Look("teal", "circle"),
    "chita++": Look("teal", "diamond"),
    "tamt": Look("purple", "square"),
    "lobs": Look("purple", "circle"),
    "multiflow-refit": Look("blue", "square"),
}


def looks(pruners: Iterable[str]) -> dict[str, Look]:
    """Return pruner -> look; pruners without a fixed look get those that are left, in order.

    >>> looks(["mine", "multiflow"])["multiflow"]
    Look(colour='blue', marker='circle')
    """
    names = list(dict.fromkeys(pruners))
    free = [Look(c, m) for m in MARKERS for c in COLOURS if Look(c, m) not in (DENSE, *LOOKS.values())]
    spare = cycle(free)
    return {name: LOOKS[name] if name in LOOKS else next(spare) for name in names}
