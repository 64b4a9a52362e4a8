"""From plain values, as YAML and JSON hold them, to frozen dataclasses: unknown keys and wrong types are errors."""

from __future__ import annotations

import math
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from numbers import Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from multiflow.base.errors import MultiflowError, did_you_mean

T = TypeVar("T")
WORDS = {str: "a text", int: "a whole number", float: "a finite number", bool: "true or false"}


def build(kind: type[T], value: Any, place: str) -> T:
    """Make a dataclass of a mapping.

    Args:
        kind: a dataclass; fields without a default must be given.
        value: what was read.
        place: where it stands, for errors, such as ``tasks.vqa``.

    Raises:
        MultiflowError: an unknown key, a missing one, or a value of another type; it names the place.
    """
    if not isinstance(value, Mapping):
        raise _wrong(place, value, "keys with values")
    hints = _hints(kind)  # type: ignore[arg-type]
    for name in value:
        if name not in hints:
            raise MultiflowError(
                f"unknown key '{name}' in {place}; known: {', '.join(hints)}{did_you_mean(str(name), hints)}"
            )
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise MultiflowError(f"{place} lacks the key '{field.name}'; give it")
    return kind(**{name: read(hints[name], of, f"{place}.{name}") for name, of in value.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def read(hint: Any, value: Any, place: str) -> Any:
    """Return a value as its type hint wants it: a dataclass, text, number, bool, None, tuple, mapping or Literal."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return build(hint, value, place)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return read(next(arg for arg in args if arg is not type(None)), value, place)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise _wrong(place, value, "a list, such as [a, b]")
        return tuple(read(args[0], one, f"{place}[{number}]") for number, one in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(place, value, "keys with values")
        return {read(args[0], name, place): read(args[1], of, f"{place}.{name}") for name, of in value.items()}
    if origin is Literal:
        if value not in args:
            raise _wrong(place, value, " or ".join(map(repr, args)))
        return value
    return _scalar(hint, value, place)


def _scalar(hint: Any, value: Any, place: str) -> Any:
    try:
        return typed(hint, value)
    except TypeError:
        quotes = " in quotes" if hint is str else ""
        raise _wrong(place, value, WORDS.get(hint, str(hint)) + quotes) from None


def typed(kind: Any, value: Any) -> Any:
    """Return a value as a kind of `WORDS`; of any other kind it must be already.

    A whole number does for a number, a number without a fraction for a whole one; numpy's numbers are numbers.

    >>> typed(int, 60.0), typed(float, 1)
    (60, 1.0)

    Raises:
        TypeError: it is none.
    """
    if kind not in (int, float) and isinstance(value, kind):
        return value
    number: Any = value if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) else None
    if number is not None and (kind is float or (kind is int and number == int(number))):
        return kind(number)
    raise TypeError(f"{value!r} is no {kind}")


def _wrong(place: str, value: Any, wanted: str) -> MultiflowError:
    return MultiflowError(f"{place} is {value!r}; expected {wanted}")


def changed(settings: Any, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults."""
    found = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name not in leave_out and value != default:
            found[field.name] = dict(value) if isinstance(value, Mapping) else value
    return found


def flags(settings: Any) -> str:
    """Write the settings that differ from their defaults as options of the command line.

    >>> from multiflow.worlds.shapes.models import Pretraining
    >>> flags(Pretraining(family="blip", steps=100))
    ' --family blip --steps 100'
    """
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed(settings).items())
