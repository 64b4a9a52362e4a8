"""Numbers and small words as reports write them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from multiflow.base import display

COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NBSP = "\N{NO-BREAK SPACE}"


def number(value: float, digits: int = 2) -> str:
    """Write a number without trailing zeros: coordinates, sizes.

    >>> number(3.0), number(2.456), number(10.4, 0)
    ('3', '2.46', '10')
    """
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float, digits: int = 0) -> str:
    """Write a share in [0, 1] as pages do: whole percents, and a space that does not break.

    >>> percent(0.63), percent(0.9996, 1), percent(1.0)
    ('63\\xa0%', '99.9\\xa0%', '100\\xa0%')
    """
    return display.percent(share, digits, short=False, space=NBSP)


def nominal(sparsity: float) -> str:
    """Write a sparsity as it was asked for, which keeps 97.5 and 98 % apart; measured shares take `percent`.

    >>> nominal(0.63), nominal(0.975)
    ('63\\xa0%', '97.5\\xa0%')
    """
    return f"{100 * sparsity:.4g}{NBSP}%"


def seconds(value: float) -> str:
    """Write a short time.

    >>> seconds(0.123), seconds(61.2)
    ('0.12\\xa0s', '61\\xa0s')
    """
    return f"{value:.{0 if value >= 9.95 else 1 if value >= 0.95 else 2}f}{NBSP}s"


def duration(value: float) -> str:
    """Write a long time that is given in seconds.

    >>> duration(42), duration(600), duration(7300)
    ('42 s', '10 min', '2.0 h')
    """
    if value < 99.5:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5970 else f"{value / 3600:.1f} h"


def day(iso: str) -> str:
    """Write a time of a record, to the minute."""
    try:
        return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M}"
    except ValueError:
        return iso


def size(count: float) -> str:
    """Write a number of bytes.

    >>> size(482_113), size(23_100_000)
    ('482\\xa0kB', '23.1\\xa0MB')
    """
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            digits = 1 if unit == "MB" and count < 100 * scale else 0
            return f"{count / scale:.{digits}f}{NBSP}{unit}"
    return f"{count:.0f}{NBSP}B"


def points(value: float) -> str:
    """Write a percentage for reading, without its sign.

    >>> points(0.5), points(68.25)
    ('0.5', '68')
    """
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def signed(value: float) -> str:
    """Write a difference with its sign.

    >>> signed(-0.04), signed(-2.5), signed(3)
    ('0.0', '−2.5', '+3.0')
    """
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}") if round(value, 1) else "0.0"


def millions(number: int) -> str:
    """Write a number of weights.

    >>> millions(4_321_000), millions(9_216)
    ('4.3 million', '9216')
    """
    return f"{number / 1e6:.1f} million" if number >= 1e5 else str(number)


def count(number: int, one: str, many: str | None = None) -> str:
    """Write how many there are of something.

    >>> count(2, "layer"), count(1, "sparsity", "sparsities")
    ('two layers', 'one sparsity')
    """
    return f"{COUNTS[number] if number < len(COUNTS) else number} {one if number == 1 else many or one + 's'}"


def listed(items: Sequence[str]) -> str:
    """Write several things in a row.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def span(numbers: Collection[int]) -> str:
    """Write the lowest and the highest of some numbers, or the one that they all are.

    >>> span([1, 3]), span([3, 3]), span([])
    ('1 to 3', '3', '')
    """
    return " to ".join(map(str, sorted({min(numbers), max(numbers)}))) if numbers else ""


def seeds_text(seeds: Sequence[int]) -> str:
    """Write seeds.

    >>> seeds_text([0, 1, 2]), seeds_text([7])
    ('seeds 0, 1, 2', 'seed 7')
    """
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def setting(value: object) -> str:
    """Write the value of a setting.

    >>> setting((0.63, None))
    '0.63, default'
    """
    if isinstance(value, tuple | list):
        return ", ".join(map(setting, value))
    return "default" if value is None else str(value)
