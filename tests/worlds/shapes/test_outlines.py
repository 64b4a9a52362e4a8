from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from multiflow.worlds.shapes import SHAPES
from multiflow.worlds.shapes.outlines import OUTLINES

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
