"""What fitting a layer costs, counted before it is done, so that the time can be said before an update method starts.

Every update method counts itself, next to its formula, in the four kinds of work that there are. How fast a machine
does each of them is measured (`multiflow.pruning.estimate`); seconds are the quotients, summed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

NUMBER = 4  # bytes of a float32
CHOOSING = 4  # numbers moved for each weight when a mask is chosen
REFITTING = 6  # numbers moved for each weight in a step of conjugate gradients


@dataclass(frozen=True)
class LayerCost:
    """The work on one layer, and what it holds; costs add up, and are multiplied by how often they come."""

    products: float = 0.0  # floating-point operations of products of large float32 matrices
    solves: float = 0.0  # of factors and inverses of large matrices, in either precision
    small: float = 0.0  # of inverses of many small matrices, one a row
    moved: float = 0.0  # bytes read and written by everything else
    held: float = 0.0  # bytes held at most, beside what every update method holds of a layer

    def __add__(self, other: LayerCost) -> LayerCost:
        sums = {x.name: getattr(self, x.name) + getattr(other, x.name) for x in fields(self) if x.name != "held"}
        return LayerCost(**sums, held=max(self.held, other.held))

    def __mul__(self, times: float) -> LayerCost:
        parts = {x.name: times * getattr(self, x.name) for x in fields(self) if x.name != "held"}
        return LayerCost(**parts, held=self.held)

    __rmul__ = __mul__


def product(rows: int, columns: int, passes: float = 0.0) -> LayerCost:
    """A layer's weights times a matrix of its inputs, and as many passes over the weights."""
    return LayerCost(products=2 * rows * columns**2, moved=NUMBER * passes * rows * columns)


def passes(rows: int, columns: int, number: float) -> LayerCost:
    """That many passes over a layer's weights."""
    return LayerCost(moved=NUMBER * number * rows * columns)


def inversion(columns: int) -> LayerCost:
    """One inverse of a matrix of the inputs, by its Cholesky factor."""
    return LayerCost(solves=columns**3, moved=6 * NUMBER * columns**2)


def refitting(rows: int, columns: int, iterations: int) -> LayerCost:
    """So many steps of conjugate gradients (`multiflow.methods.least_squares.refit`)."""
    return iterations * product(rows, columns, REFITTING) + product(rows, columns, 4)
