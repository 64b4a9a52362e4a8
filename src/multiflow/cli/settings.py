"""From words on the command line to settings: tyro makes the options from a frozen dataclass."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

import tyro
from tyro.conf import arg

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.cli.commands import Command

Settings = TypeVar("Settings")

Device: TypeAlias = Annotated[str, arg(metavar="DEVICE", help="auto (CUDA if there is any), cpu, cuda or cuda:N")]
Dtype: TypeAlias = Annotated[
    str, arg(metavar="DTYPE", help="auto (as the model is stored), float32, bfloat16 or float16")
]
Seed: TypeAlias = Annotated[int, arg(metavar="S", help="seed of whatever is random")]
Family: TypeAlias = Annotated[
    str | None,
    arg(metavar="F", help="of an original checkpoint file, its family, such as xvlm or dino", help_behavior_hint=""),
]
Config: TypeAlias = Annotated[
    str | None,
    arg(
        metavar="FILE",
        help="of an original checkpoint file, its sizes: JSON, YAML or a preset",
        help_behavior_hint="(default: base)",
    ),
]
Modules: TypeAlias = Annotated[
    tuple[str, ...],
    arg(
        metavar="FILE ...",
        help="Python files, folders or names of modules with a family of your own",
        help_behavior_hint="",
    ),
]
Resume: TypeAlias = Annotated[
    bool, arg(help="go on with an unfinished run in the output folder", help_behavior_hint="")
]

STYLE = (
    tyro.conf.DisallowNone,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.HelptextFromCommentsOff,
    tyro.conf.PositionalMetavarFromFieldName,
)
RULE = re.compile(r"[\u256d\u256e\u2570\u256f\u2500-]*")  # lines that tyro draws around and between what it says
SIDES = "\u2502 "
NUMBERS = re.compile(r"(\d*\.?\d+%?([,;]|$))+")
"""What is taken for several numbers."""


def parse(settings: type[Settings], command: Command, args: Sequence[str]) -> Settings | None:
    """Read the settings of a command from its arguments; None when only its help was asked for and printed.

    Raises:
        MultiflowError: an unknown option, a missing argument, or a value of the wrong kind.
    """
    prog = f"multiflow {command.name}"
    examples = "".join(f"\n  {line}" for line in command.example.splitlines())
    description = f"{command.summary}\n\nexample:{examples}"
    said = io.StringIO()
    _check_values(settings, prog, args)
    args = _spread(settings, args)
    try:
        with redirect_stderr(said):
            read, unknown = tyro.cli(
                settings, prog=prog, description=description, args=args, return_unknown_args=True, config=STYLE
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise MultiflowError(f"{_complaint(said.getvalue(), prog)}; see '{prog} --help'") from None
    if unknown:
        if not unknown[0].startswith("-"):
            raise MultiflowError(f"'{prog}' takes no argument '{unknown[0]}'; see '{prog} --help'")
        name = unknown[0].partition("=")[0]
        hint = did_you_mean(name, _options(read)) or f"; see '{prog} --help'"
        raise MultiflowError(f"'{prog}' takes no option '{name}'{hint}")
    return read


def _check_values(settings: Any, prog: str, args: Sequence[str]) -> None:
    """Refuse an option that takes several values and got none: tyro would read it as an empty list."""
    several = {_option(field.name) for field in fields(settings) if isinstance(field.default, tuple)}
    for word, following in pairwise([*args, "--"]):
        if word in several and following.startswith("--"):
            raise MultiflowError(f"'{prog}': Missing value for argument '{word}'; see '{prog} --help'")


def _spread(settings: Any, args: Sequence[str]) -> list[str]:
    """Write numbers of which an option takes several apart, and those in percent as shares: ``0.5,75%`` is 0.5 0.75."""
    hints = get_type_hints(settings)
    several = {_option(name) for name, hint in hints.items() if hint == tuple[float, ...]}
    found: list[str] = []
    taken = False
    for word in args:
        option, equals, joined = word.partition("=")
        if word.startswith("--"):
            taken = option in several
        given = joined if taken and equals else word
        if not taken or not NUMBERS.fullmatch(given):
            found.append(word)
            continue
        numbers = [f"{float(n[:-1]) / 100:g}" if n.endswith("%") else n for n in re.split("[,;]", given) if n]
        found += [option, *numbers] if equals else numbers
    return found


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _options(settings: Any) -> Iterator[str]:
    for field in fields(settings):
        value = getattr(settings, field.name)
        yield from _options(value) if is_dataclass(value) else [_option(field.name)]


def option_of(settings: Any) -> Callable[[str], str]:
    """Return what names an argument as the option that it is for this command; a hyper-parameter is one of --set."""
    options = set() if settings is None else set(_options(settings))

    def option(name: str) -> str:
        if (own := _option(name)) in options:
            return own
        return f"--set {name}" if "--set" in options else name

    return option


def _complaint(text: str, prog: str) -> str:
    """Make one sentence of what tyro says about bad arguments in a box of several lines."""
    lines = [line.strip(SIDES) for line in text.splitlines()[1:]]  # the first one is a title
    said = " ".join(line for line in lines if not RULE.fullmatch(line))
    said = re.split(r" (?:Got errors|Perhaps you meant|Argument helptext|For full helptext)", said)[0]
    if match := re.match(r"Error parsing (\S+): .*?('.*')", said):
        return f"'{prog}': {match[1]} cannot take {match[2]}"
    if match := re.match(r"Missing from .*?: (\S+)", said):
        return f"'{prog}' lacks its argument {match[1]}"
    return f"'{prog}': {said.rstrip('. ')}"


def parse_hyper(pairs: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read hyper-parameters from ``NAME=VALUE``; the pruner checks their names and types.

    >>> parse_hyper(["alpha=0.25", "schedule=exp"], {"alpha": 0.5, "schedule": "linear"})
    {'alpha': 0.25, 'schedule': 'exp'}

    Raises:
        MultiflowError: a pair without '='.
    """
    hyper = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise MultiflowError(f"--set got '{pair}'; expected NAME=VALUE, such as --set alpha=0.25")
        hyper[name] = text if isinstance(defaults.get(name), str) else parse_value(text)
    return hyper


def parse_value(text: str) -> int | float | bool | str:
    """Read a whole number, a number, true or false, or else a text.

    >>> [parse_value(text) for text in ("60", "1e-5", "true", "exp")]
    [60, 1e-05, True, 'exp']
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)
