"""The outlines of the shapes as signed distances: negative inside, in units of the object's radius.

Coordinates are fractions of the radius, u to the right and v downwards; every outline fits [-1, 1] x [-1, 1].
Distances are exact inside near the border, which is all that antialiasing and outlined fills need.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin, sqrt

import numpy as np

Array = np.ndarray


def circle(u: Array, v: Array) -> Array:
    """A disc of radius 1."""
    return np.sqrt(u * u + v * v) - 1


def square(u: Array, v: Array) -> Array:
    """An upright square."""
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
