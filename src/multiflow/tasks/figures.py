"""What an evaluation found: figures by name, and the main one of each item."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final


@final
class Figures(dict[str, float]):
    """Figures in percent by name, and how much of the main one each test item brings in.

    It equals, prints and is written as its figures alone.

    Args:
        figures: name -> value.
        each: the main figure of each item, in the order of the items: their mean is the figure up to rounding. Two
            models can be compared item by item with it. Empty where the main figure was not computed.

    >>> Figures({"accuracy": 75.0}, [100, 50]).each
    (100.0, 50.0)
    """

    __slots__ = ("each",)

    def __init__(self, figures: Mapping[str, float], each: Iterable[float] = ()) -> None:
        """Take over the figures."""
        super().__init__(figures)
        self.each: tuple[float, ...] = tuple(map(float, each))
