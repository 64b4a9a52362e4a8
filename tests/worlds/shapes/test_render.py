from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.worlds.shapes import BACKGROUNDS, COLOURS, FILLS, SHAPES, STYLES, Object, Scene, make_scenes, render
from multiflow.worlds.shapes.render import OUTLINES, PALETTE
from multiflow.worlds.shapes.scene import STYLE_BACKGROUNDS


def alone(style: str = "plain", background: str = "black", seed: int = 5, **attributes: str | float) -> Scene:
    star = Object("star", "red", "small", "solid", x=0.5, y=0.5, radius=0.11)
    return Scene((replace(star, **attributes),), background, style, seed)


def hue_and_strength(pixels: np.ndarray) -> np.ndarray:
    """Largest less smallest channel: near zero for anything grey."""
    pixels = pixels.astype(int)
    return pixels.max(-1) - pixels.min(-1)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [16, 48, 64, 97])
def test_pictures_are_rgb_bytes_and_repeatable(style: str, size: int) -> None:
    for scene in make_scenes("train", 12, style=style):
        picture = render(scene, size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, render(scene, size))


@pytest.mark.parametrize("style", STYLES)
def test_a_scene_looks_alike_at_every_size(style: str) -> None:
    for scene in make_scenes("train", 12, style=style):
        small, large = (
            Image.fromarray(render(scene, size)).resize((24, 24), Image.Resampling.BOX) for size in (48, 192)
        )
        assert np.abs(np.asarray(small, int) - np.asarray(large, int)).mean() < 8


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("colour", COLOURS)
def test_solid_objects_have_their_colour(style: str, colour: str) -> None:
    names = list(PALETTE[style])
    palette = np.array([PALETTE[style][name] for name in names], float)
    palette /= palette.max(1, keepdims=True)  # thin chalk is darker paint: compare hues
    for seed, background in product(range(6), STYLE_BACKGROUNDS[style]):
        picture = render(alone(style, background, seed, shape="square", colour=colour), 48)
        middle = picture[22:26, 22:26].reshape(-1, 3).mean(0)
        assert names[np.abs(palette - middle / middle.max()).sum(1).argmin()] == colour


@pytest.mark.parametrize("style", STYLES)
def test_backgrounds_are_grey_beside_every_object(style: str) -> None:
    """The part of the picture without an object has less hue than any object colour."""
    least = min(max(c) - min(c) for c in PALETTE[style].values())
    for background, seed in product(STYLE_BACKGROUNDS[style], range(8)):
        picture = render(alone(style, background, seed, x=0.14, y=0.14), 48)
        assert hue_and_strength(picture[16:]).max() < 0.6 * least


@pytest.mark.parametrize("style", STYLES)
def test_backgrounds_differ(style: str) -> None:
    """Means and spreads by which backgrounds of one style are told apart at 48 pixels."""
    pixels = {b: render(alone(style, b, x=0.14, y=0.14), 48)[16:, :, 1].astype(float) for b in STYLE_BACKGROUNDS[style]}
    signs = {b: (p.mean() / 8, p.std(), np.abs(np.diff(p, axis=1)).mean()) for b, p in pixels.items()}
    for a, b in product(signs, signs):
        assert a == b or np.abs(np.subtract(signs[a], signs[b])).max() > 2, (a, b)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("size", "radius"), [("small", 0.11), ("large", 0.17)])
def test_shapes_and_fills_can_be_told_apart_at_48_pixels(style: str, size: str, radius: float) -> None:
    """Nearest mean picture over other seeds, at a fixed place: a machine with no learning recognises shape and fill."""
    looks = list(product(SHAPES, FILLS))
    pictures = np.array(
        [
            [render(alone(style, "black", seed, shape=s, fill=f, size=size, radius=radius), 48) for seed in range(18)]
            for s, f in looks
        ]
    ).astype(float)
    means = pictures[:, :12].mean(1)
    distances = np.abs(pictures[:, 12:, None] - means).mean((-1, -2, -3))  # (look, seed, mean)
    right = (distances.argmin(-1) == np.arange(len(looks))[:, None]).mean()
    assert right > 0.97


def test_an_object_stays_inside_its_box() -> None:
    for style, shape, fill in product(STYLES, SHAPES, FILLS):
        first = Object("circle", "blue", "small", "solid", x=0.2, y=0.2, radius=0.11)
        second = Object(shape, "red", "large", fill, x=0.6, y=0.6, radius=0.17)
        without, both = (Scene(objects, "grey", style, 9) for objects in ((first,), (first, second)))
        rows, columns = np.nonzero(np.abs(render(both).astype(int) - render(without)).max(-1) > 12)
        for at in (rows, columns):
            assert at.min() >= (0.6 - 0.17) * 64 - 2
            assert at.max() <= (0.6 + 0.17) * 64 + 2
        assert max(np.ptp(rows), np.ptp(columns)) > 0.75 * 0.34 * 64


def test_styles_look_different() -> None:
    plain, chalk = (
        np.array([render(s).mean((0, 1)) for s in make_scenes("train", 80, style=style)]) for style in STYLES
    )
    assert plain.mean() > chalk.mean() + 30


def test_backgrounds_are_all_used() -> None:
    assert {s.background for s in make_scenes("train", 100)} == set(BACKGROUNDS)


def test_too_small_a_picture() -> None:
    with pytest.raises(MultiflowError, match="size=8 was given, 16 pixels or more"):
        render(alone(), size=8)


AXIS = np.linspace(-1.5, 1.5, 301)
U, V = AXIS[None, :], AXIS[:, None]


def inside(shape: str) -> np.ndarray:
    return np.broadcast_to(OUTLINES[shape](U, V), (301, 301)) <= 0


def test_every_shape_has_an_outline() -> None:
    assert tuple(OUTLINES) == SHAPES


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_fill_their_box_and_no_more(shape: str) -> None:
    rows, columns = np.nonzero(inside(shape))
    for at in (AXIS[rows], AXIS[columns]):
        assert np.abs(at).max() <= 1.03
    assert max(np.abs(AXIS[rows]).max(), np.abs(AXIS[columns]).max()) >= 0.85


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_distances(shape: str) -> None:
    """No slope above 1 anywhere, and 1 at the outline: antialiased edges are one pixel wide."""
    distance = np.broadcast_to(OUTLINES[shape](U, V), (301, 301))
    step = AXIS[1] - AXIS[0]
    for axis in (0, 1):
        assert np.abs(np.diff(distance, axis=axis)).max() < 1.0001 * step
    slope = np.hypot(*np.gradient(distance, step))
    assert np.median(slope[np.abs(distance) < 0.02]) == pytest.approx(1, abs=0.01)


def test_silhouettes_are_different() -> None:
    for a, b in combinations(SHAPES, 2):
        assert (inside(a) & inside(b)).sum() < 0.85 * (inside(a) | inside(b)).sum(), (a, b)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "moon"])
def test_shapes_are_symmetric(shape: str) -> None:
    distance = np.broadcast_to(OUTLINES[shape](U, V), (301, 301))
    np.testing.assert_allclose(distance, distance[:, ::-1], atol=1e-12)
