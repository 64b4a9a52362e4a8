"""The one exception of the library, and the sentence parts its messages share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class MultiflowError(Exception):
    """Bad input: the message repeats what was given, says what was expected and how to fix it."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """Write control characters, and bytes of file names that are no text, as escapes: any terminal and file takes it.

    >>> printable("a\\x1b[2J.png")
    'a\\\\x1b[2J.png'
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest choice, or an empty string.

    >>> did_you_mean("wandaa", ["wanda", "ria"])
    "; did you mean 'wanda'?"
    >>> did_you_mean("cider", ["CIDEr"])
    "; did you mean 'CIDEr'?"
    """
    names = {choice.lower(): choice for choice in choices}
    close = get_close_matches(given.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean '{names[close[0]]}'?" if close else ""


def unknown(kind: str, given: str, choices: Iterable[str]) -> MultiflowError:
    """Build the error for a name that is not in a registry.

    >>> str(unknown("pruner", "wandaa", ["ria", "wanda"]))
    "unknown pruner 'wandaa'; known: ria, wanda; did you mean 'wanda'?"
    """
    names = list(choices)
    return MultiflowError(f"unknown {kind} '{given}'; known: {', '.join(names)}{did_you_mean(given, names)}")
