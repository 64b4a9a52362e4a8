"""Scenes to pixels: numpy only, antialiased by signed distance, a pure function of (scene, size).

The outlines are signed distances: negative inside, in units of the object's radius. Their coordinates are fractions of
the radius, u to the right and v downwards; every outline fits [-1, 1] x [-1, 1]. Distances are exact inside near the
border, which is all that antialiasing and outlined fills need.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import cos, pi, radians, sin, sqrt
from random import Random

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.worlds.shapes.scene import Object, Scene

Array = np.ndarray

PALETTE = {
    "plain": {
        "red": (214, 34, 40),
        "orange": (248, 130, 18),
        "yellow": (246, 212, 20),
        "green": (36, 150, 58),
        "cyan": (48, 202, 214),
        "blue": (38, 76, 214),
        "purple": (128, 44, 172),
        "pink": (250, 130, 184),
    },
    "chalk": {
        "red": (236, 84, 76),
        "orange": (242, 144, 54),
        "yellow": (246, 230, 116),
        "green": (110, 204, 112),
        "cyan": (128, 232, 232),
        "blue": (96, 140, 246),
        "purple": (172, 104, 226),
        "pink": (252, 176, 214),
    },
}
_JITTER = {"plain": 10.0, "chalk": 11.0}  # of each colour channel
MIN_SIZE = 16


def circle(u: Array, v: Array) -> Array:
    """A disc of radius 1."""
    return np.sqrt(u * u + v * v) - 1


def square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - 0.86


def triangle(u: Array, v: Array) -> Array:
    """A triangle that points up: apex (0, -1), base at v = 0.78."""
    nx, ny = 1.78 / sqrt(1.78**2 + 1), -1 / sqrt(1.78**2 + 1)
    return np.maximum(v - 0.78, nx * np.abs(u) + ny * v + ny)


def star(u: Array, v: Array) -> Array:
    """A star of five points: fold the plane into one half point, then one straight edge is left."""
    inner, fifth = 0.5, 2 * pi / 5
    v = v - 0.08
    rho, angle = np.sqrt(u * u + v * v), np.arctan2(u, -v)
    angle = np.abs((angle + fifth / 2) % fifth - fifth / 2)
    nx, ny = 1 - inner * cos(fifth / 2), inner * sin(fifth / 2)
    norm = sqrt(nx * nx + ny * ny)
    return (nx * rho * np.sin(angle) + ny * (rho * np.cos(angle) - 1.04)) / norm


def diamond(u: Array, v: Array) -> Array:
    """A square on its corner, slimmed to 3 : 4."""
    width = 0.75
    return (np.abs(u) + width * np.abs(v) - width) / sqrt(1 + width * width)


def cross(u: Array, v: Array) -> Array:
    """A plus sign of two bars."""
    u, v = np.abs(u), np.abs(v)
    long, short = 0.95, 0.36
    return np.minimum(np.maximum(u - long, v - short), np.maximum(u - short, v - long))


def heart(u: Array, v: Array) -> Array:
    """A square on its corner with a half disc on each of its upper sides."""
    lobe = 1 / (1 + sqrt(0.5))  # half the side of the square; the heart is 2 wide
    x, y = np.abs(u), 0.06 - v  # upwards from the middle of the square
    corner = lobe * sqrt(2)
    beside = np.sqrt((x - corner / 2) ** 2 + (y - corner / 2) ** 2) - lobe  # of the half disc
    below = (x - y - corner) / sqrt(2)  # of the lower side
    notch = np.sqrt(x * x + (y - corner) ** 2)
    return np.where(x + y > corner, beside, np.maximum(below, -notch))


def moon(u: Array, v: Array) -> Array:
    """A crescent, open to the right: a disc without another disc."""
    u = u - 0.12
    return np.maximum(np.sqrt(u * u + v * v) - 1, 0.74 - np.sqrt((u - 0.54) ** 2 + v * v))


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    f.__name__: f for f in (circle, square, triangle, star, diamond, cross, heart, moon)
}


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Draw a scene; returns a uint8 array (size, size, 3).

    >>> from multiflow.worlds.shapes import make_scenes
    >>> render(make_scenes("train", 1)[0], size=48).shape
    (48, 48, 3)
    """
    if size < MIN_SIZE:
        raise MultiflowError(f"size={size} was given, {MIN_SIZE} pixels or more were expected; pass size=64")
    rng = Random(scene.seed)
    canvas = _background(scene, size, rng)
    draw = _draw_chalk if scene.style == "chalk" else _draw_plain
    for obj in scene.objects:
        draw(canvas, obj, size, rng)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _draw_plain(canvas: Array, obj: Object, size: int, rng: Random) -> None:
    """Flat colour with clean edges; stripes alternate with a tint of the colour."""
    rows, columns, x, y = _window(obj, size)
    radius = obj.radius * size
    distance = OUTLINES[obj.shape](x / radius, y / radius) * radius
    colour = _colour(obj, "plain", rng)
    cover = _step(distance)
    paint: Array = colour
    if obj.fill == "outline":
        cover = cover - _step(distance + max(1.2, 0.2 * radius))
    elif obj.fill == "striped":
        stripes = _stripes(np.broadcast_to(y, distance.shape), max(3.4, 0.52 * radius))
        paint = colour + (1 - stripes)[..., None] * 0.64 * (252 - colour)
    _blend(canvas[rows, columns], paint, cover)


def _draw_chalk(canvas: Array, obj: Object, size: int, rng: Random) -> None:
    """Turned a little, with wobbling, grainy strokes; stripes are slanting strokes inside an outline."""
    rows, columns, x, y = _window(obj, size)
    angle = radians(24 * (rng.random() - 0.5))
    c, s = cos(angle), sin(angle)
    x, y = c * x + s * y, c * y - s * x
    radius = 0.94 * obj.radius * size
    wobble, grain = _one_of(_smooth(size), rng)[rows, columns], _one_of(_grain(size), rng)[rows, columns]
    distance = OUTLINES[obj.shape](x / radius, y / radius) * radius + (0.035 * radius) * wobble
    stroke = max(1.1, 0.2 * radius) * (0.85 + 0.3 * rng.random())
    border = _step(distance) - _step(distance + stroke)
    if obj.fill == "outline":
        cover = border
    elif obj.fill == "striped":
        cover = np.maximum(border * 0.8, _step(distance) * _stripes((x + y) * 0.7071, max(3.4, 0.5 * radius)))
    else:
        cover = np.maximum(border, 0.95 * _step(distance))
    _blend(canvas[rows, columns], _colour(obj, "chalk", rng), cover * (0.9 + 0.1 * np.clip(grain, -3, 1)))


def _window(obj: Object, size: int) -> tuple[slice, slice, Array, Array]:
    """The pixels an object may touch, and their centres in pixels from its centre: x (1, w), y (h, 1)."""
    reach = obj.radius * size + 1.5
    cx, cy = obj.x * size, obj.y * size
    left, right = max(int(cx - reach), 0), min(int(cx + reach) + 1, size)
    top, bottom = max(int(cy - reach), 0), min(int(cy + reach) + 1, size)
    x = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - cx))[None, :]
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - cy))[:, None]
    return slice(top, bottom), slice(left, right), x, y


def _step(distance: Array) -> Array:
    """The share of a pixel that lies inside, from the signed distance of its centre in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def _stripes(along: Array, period: float) -> Array:
    """1 on a stripe, 0 between; half of every period is stripe, one stripe in the middle."""
    return np.clip((np.abs(along / period - np.round(along / period)) - 0.25) * -period + 0.5, 0, 1)


def _blend(patch: Array, paint: Array, cover: Array) -> None:
    patch += cover[..., None] * (paint - patch)


def _colour(obj: Object, style: str, rng: Random) -> Array:
    jitter = _JITTER[style]
    return np.array([c + jitter * (2 * rng.random() - 1) for c in PALETTE[style][obj.colour]], dtype=np.float32)


def _one_of(bank: Array, rng: Random) -> Array:
    return bank[int(rng.random() * len(bank))]


def _shade(low: float, high: float, rng: Random, tint: float = 7) -> Array:
    """A nearly grey colour between two brightnesses: no background has the hue of an object."""
    level = low + (high - low) * rng.random()
    return np.array([level + tint * (2 * rng.random() - 1) for _ in range(3)], dtype=np.float32)


def _background(scene: Scene, size: int, rng: Random) -> Array:
    """The empty canvas, float32 (size, size, 3)."""
    kind, chalk = scene.background, scene.style == "chalk"
    dark = chalk or rng.random() < 0.4
    base = _shade(30, 58, rng) if dark else _shade(196, 226, rng)
    lift = 1.0 if dark else -1.0
    if kind == "white":
        base = _shade(240, 252, rng, tint=3)
    elif kind == "grey":
        base = _shade(88, 108, rng) if chalk else _shade(126, 158, rng)
    elif kind == "black":
        base = _shade(16, 32, rng)
    if chalk:
        base += np.array([-5, 5, 1], dtype=np.float32)  # a school board
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = base
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    if kind == "gradient":
        angle = 6.2832 * rng.random()
        ramp = cos(angle) * axis[None, :] + sin(angle) * axis[:, None]
        canvas += (lift * 34 + 62 * ramp)[..., None]
    elif kind == "checked":
        period = size / (5 + 3 * rng.random())
        phase = period * rng.random()
        line = (axis * size + phase) / period
        if chalk:  # squared paper
            rule = np.clip(1.0 - np.abs(line - np.round(line)) * period, 0, 1)
            canvas += (34 * np.maximum(rule[None, :], rule[:, None]))[..., None]
        else:
            wave = np.clip((np.abs(line % 2 - 1) - 0.5) * period, -0.5, 0.5)
            canvas += (lift * (14 + 48 * wave[None, :] * wave[:, None]))[..., None] * 1.6
    elif kind == "speckled":
        specks = np.clip(np.abs(_one_of(_grain(size), rng)) - 1.1, 0, 1.4)
        canvas += (lift * 52 * specks)[..., None]
    if chalk:
        canvas += (9 * _one_of(_smooth(size), rng) + 3.5 * _one_of(_grain(size), rng))[..., None]
    return canvas


@lru_cache(maxsize=4)
def _smooth(size: int) -> Array:
    """A bank of smooth noise fields (32, size, size) of unit variance, the same fields at every size."""
    knots = np.random.Generator(np.random.Philox(1)).standard_normal((32, 9, 9)).astype(np.float32)
    at = (np.arange(size) + 0.5) / size * 8
    low = at.astype(int)
    part = (at - low).astype(np.float32)
    part = part * part * (3 - 2 * part)
    rows = knots[:, low] * (1 - part)[:, None] + knots[:, low + 1] * part[:, None]
    field = rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
    return field / field.std()


@lru_cache(maxsize=4)
def _grain(size: int) -> Array:
    """A bank of white noise (16, size, size) of unit variance."""
    return np.random.Generator(np.random.Philox(2)).standard_normal((16, size, size)).astype(np.float32)
