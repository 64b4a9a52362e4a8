"""The one exception of the library, and the sentence parts its messages share.

A message names arguments in one wording for two doors: users of Python read ``resume=True``, those of the command line
``--resume``. Such an argument stands in braces and is named as a field::

    raise MultiflowError("'runs/a' holds a run; go on with {resume=True}", field="resume")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches

LONG = re.compile(r"\S{500,}")
"""A word of no use in a message: a number of thousands of digits, text without a space."""
BEGINNING, END = 1_500, 700
"""Letters of a message that is longer than these together: what was given is cut, the fix at the end stays."""


class MultiflowError(Exception):
    """Bad input: the message repeats what was given, says what was expected and how to fix it.

    Args:
        message: one sentence. Arguments may stand in it as ``{name}``, ``{name=}`` or ``{name=value}``.
        field: the names of those arguments, the one that is wrong first; other braces are left as they are.

    >>> error = MultiflowError("{sparsity} 2 is too large; leave {pattern=} out", field=["sparsity", "pattern"])
    >>> str(error), error.worded("--{}".format)
    ('sparsity 2 is too large; leave pattern= out', '--sparsity 2 is too large; leave --pattern out')
    """

    def __init__(self, message: str, *, field: str | Sequence[str] = ()) -> None:
        self.fields = tuple(filter(None, (field,) if isinstance(field, str) else field))
        self._message = message
        super().__init__(self._with(lambda name, equals, value: f"{name}{equals}{value}"))

    def worded(self, option: Callable[[str], str]) -> str:
        """Return the message with each field as ``option(name)`` says, such as ``--name``; the value follows it."""

        def write(name: str, equals: str, value: str) -> str:
            called = option(name)
            if not called.startswith("-"):  # no option of this command
                return f"{called}{equals}{value}"
            joined = "=" if " " in called else " "  # as --set NAME=VALUE
            return called if not value or value == "True" else f"{called}{joined}{value}"

        return _shortened(self._with(write))

    def within(self, place: str) -> MultiflowError:
        """Return the same error with the place of what is wrong before its message."""
        return type(self)(f"{place}: {self._message}", field=self.fields)

    def _with(self, write: Callable[[str, str, str], str]) -> str:
        if not self.fields:
            return self._message
        names = "|".join(map(re.escape, self.fields))
        return re.sub(rf"\{{({names})(=?)([^{{}}]*)\}}", lambda found: write(*found.groups()), self._message)

    def __str__(self) -> str:
        return _shortened(super().__str__())


def _shortened(message: str) -> str:
    text = LONG.sub(lambda word: f"{word[0][:300]}...", printable(message))
    return text if len(text) <= BEGINNING + END else f"{text[:BEGINNING]} ... {text[-END:]}"


def printable(text: str) -> str:
    """Write what no terminal or file should be given as escapes: control characters, bytes of names that are no text.

    >>> printable("a\\x1b[2J.png")
    'a\\\\x1b[2J.png'
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, one: str, many: str | None = None) -> str:
    """Write a number of things.

    >>> counted(1, "layer"), counted(2400, "layer"), counted(0, "batch", "batches")
    ('1 layer', '2,400 layers', '0 batches')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def did_you_mean(given: str, choices: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest choice, or an empty string.

    >>> did_you_mean("wandaa", ["wanda", "ria"])
    "; did you mean 'wanda'?"
    >>> did_you_mean("cider", ["CIDEr"])
    "; did you mean 'CIDEr'?"
    """
    names = {str(choice).lower(): choice for choice in choices}
    close = get_close_matches(str(given).lower(), names, n=1, cutoff=0.6)
    return f"; did you mean '{names[close[0]]}'?" if close else ""


def unknown(kind: str, given: str, choices: Iterable[str]) -> MultiflowError:
    """Build the error for a name that is not in a registry.

    >>> str(unknown("pruner", "wandaa", ["ria", "wanda"]))
    "unknown pruner 'wandaa'; known: ria, wanda; did you mean 'wanda'?"
    """
    names = list(choices)
    return MultiflowError(f"unknown {kind} '{given}'; known: {', '.join(names)}{did_you_mean(given, names)}")
