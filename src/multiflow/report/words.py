"""The results of a demo in sentences, every figure computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from multiflow.report.html import nominal
from multiflow.report.values import Demo, recall_at_1

COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def headline(demo: Demo) -> str:
    """Return the result in one sentence, with the figures of the most telling sparsity."""
    found = {method: recall_at_1(demo.row(method, demo.shown).quality) for method in demo.methods}
    ranked = sorted(found, key=lambda method: -found[method])
    leaders = demo.leaders(demo.shown)
    dense = f"dense model: {points(recall_at_1(demo.dense))}"
    begin = f"At {nominal(demo.shown)} zeros and without retraining,"
    if not leaders:
        return (
            f"{begin} no method is far from chance: the best, {ranked[0]}, puts the right answer first in "
            f"{points(found[ranked[0]])} of 100 searches ({dense})."
        )
    others = [f"{method} {points(found[method])}" for method in ranked if method not in leaders]
    figures = listed([points(found[method]) for method in leaders])
    models, puts, close = ("model", "puts", "") if len(leaders) == 1 else ("models", "put", ", too close to call")
    return (
        f"{begin} the {models} pruned by {listed(leaders)} still {puts} the right answer first in {figures} of 100 "
        f"searches{close} ({dense}){'; ' * bool(others)}{', '.join(others)}."
    )


def listed(items: Sequence[str]) -> str:
    """Write several things in a row.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def collapses(demo: Demo) -> Iterator[tuple[str, str]]:
    """Yield each method of which something has collapsed, and what has, sparsity by sparsity."""
    for method in demo.methods:
        said = []
        for row in (demo.row(method, s) for s in demo.sparsities):
            groups = f"all of {' and '.join(row.collapsed_groups)}" if row.collapsed_groups else ""
            number = len(row.collapsed_layers)
            layers = f"{number} of {len(row.layers)} layers" if number else ""
            if groups or layers:
                said.append(f"{', '.join(filter(None, (groups, layers)))} at {nominal(row.sparsity)}")
        if said:
            yield method, "; ".join(said)


def points(value: float) -> str:
    """Write a percentage for reading, without its sign.

    >>> points(0.5), points(68.25)
    ('0.5', '68')
    """
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def count(number: int, one: str, many: str | None = None) -> str:
    """Write how many there are of something.

    >>> count(2, "layer"), count(1, "sparsity", "sparsities")
    ('two layers', 'one sparsity')
    """
    return f"{COUNTS[number] if number < len(COUNTS) else number} {one if number == 1 else many or one + 's'}"


def millions(number: int) -> str:
    """Write a number of weights.

    >>> millions(4_321_000), millions(9_216)
    ('4.3 million', '9216')
    """
    return f"{number / 1e6:.1f} million" if number >= 1e5 else str(number)


def plain(value: object) -> str:
    """Write the value of a setting."""
    if isinstance(value, tuple | list):
        return ", ".join(map(plain, value))
    return "default" if value is None else str(value)
