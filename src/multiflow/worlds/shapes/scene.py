"""The values of the Shapes world: objects, scenes, and the words that name their attributes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
