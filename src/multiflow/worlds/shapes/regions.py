"""Region captions: what is in a box, as Visual Genome tells it."""

from __future__ import annotations

from random import Random

from multiflow.worlds.shapes.language import article, name, pick
from multiflow.worlds.shapes.lexicon import LONG
from multiflow.worlds.shapes.scene import Scene

Box = tuple[float, float, float, float]


def regions(scene: Scene) -> list[tuple[str, Box]]:
    """Return a caption and a box (cx, cy, width, height; fractions of the image) for every object, in their order.

    Objects that look alike are told apart by their places.
    """
    rng = Random(scene.seed ^ 0xB0C5)
    looks = [(o.shape, o.colour, o.size, o.fill) for o in scene.objects]
    found = []
    for obj, look in zip(scene.objects, looks, strict=True):
        text = article(name(obj, rng))
        if looks.count(look) > 1:
            text += " " + pick(rng, LONG[obj.cell])
        found.append((text, obj.box))
    return found
