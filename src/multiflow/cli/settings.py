"""From words on the command line to settings, and from settings to the adapter and the device that they ask for.

tyro makes the options from a frozen dataclass.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_origin, get_type_hints

import torch
import torch.distributed as dist
import torch.distributed.nn  # now: imported inside a group, its default arguments keep that group and its threads
import tyro
from torch import nn
from tyro.conf import arg

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.parallel import Ended, exchange, rank, together, world
from multiflow.base.registry import import_modules
from multiflow.cli.console import say
from multiflow.families import adapter_for
from multiflow.families.batches import Source
from multiflow.families.opening import find_device, open_model

if TYPE_CHECKING:
    from multiflow.cli import Command

Settings = TypeVar("Settings")

Device: TypeAlias = Annotated[str, arg(metavar="DEVICE", help="auto (CUDA if there is any), cpu, cuda or cuda:N")]
Dtype: TypeAlias = Annotated[
    str, arg(metavar="DTYPE", help="auto (as the model is stored), float32, bfloat16 or float16")
]
Seed: TypeAlias = Annotated[int, arg(metavar="S", help="seed of whatever is random")]
Modules: TypeAlias = Annotated[
    tuple[str, ...],
    arg(
        metavar="FILE ...",
        help="Python files, folders or names of modules with a family of your own",
        help_behavior_hint="",
    ),
]
Images: TypeAlias = Annotated[
    str | None,
    arg(metavar="DIR", help="folder of the images that the data name", help_behavior_hint="(default: beside the data)"),
]
ImageColumn: TypeAlias = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help="column or key of the data that holds the images or sounds",
        help_behavior_hint="(default: told by its name)",
    ),
]
TextColumn: TypeAlias = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help="column or key of the data that holds the texts",
        help_behavior_hint="(default: told by its name)",
    ),
]
MaskSparsity: TypeAlias = Annotated[
    float | None,
    arg(metavar="S", help="share that the masks are said to drop: any other is refused", help_behavior_hint=""),
]
Resume: TypeAlias = Annotated[
    bool, arg(help="go on with an unfinished run in the output folder", help_behavior_hint="")
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What commands that open a model are told of it."""

    family: Annotated[
        str | None,
        arg(
            metavar="F", help="of an original checkpoint file, its family, such as xvlm or dino", help_behavior_hint=""
        ),
    ] = None
    config: Annotated[
        str | None,
        arg(
            metavar="FILE",
            help="of an original checkpoint file, its sizes: JSON, YAML or a preset",
            help_behavior_hint="(default: base)",
        ),
    ] = None
    trust_remote_code: Annotated[
        bool, arg(help="let Python code run that comes with the model", help_behavior_hint="")
    ] = False

    def open(self, place: str, device: str = "cpu", dtype: str = "auto") -> Any:
        """Load the model at a place that `find_model` has resolved, as these options say; see `open_model`."""
        return open_model(place, self.family, self.config, device, dtype, self.trust_remote_code)


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Which layers of a model are pruned, in which groups, and whose tokens count."""

    exclude: Annotated[
        str | None,
        arg(metavar="REGEX", help="module paths that stay dense besides", help_behavior_hint=""),
    ] = None
    group: Annotated[
        tuple[str, ...],
        arg(
            metavar="NAME=REGEX ...", help="put the layers with these module paths into a group", help_behavior_hint=""
        ),
    ] = ()
    tokens: Annotated[
        str,
        arg(metavar="WHICH", help="which tokens of a language model's input count: all, text or image"),
    ] = "all"
    adapter: Annotated[
        str | None,
        arg(
            metavar="FILE.py",
            help="a Python file with 'adapter', an mf.Adapter or a function that makes one of the model",
            help_behavior_hint="",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How commands that calibrate read their data."""

    tokenizer: Annotated[
        str | None,
        arg(
            metavar="DIR_OR_ID",
            help="folder or Hugging Face id",
            help_behavior_hint="(default: the model's own, or bert-base-uncased)",
        ),
    ] = None
    images: Images = None
    image_column: ImageColumn = None
    text_column: TextColumn = None
    processor: Annotated[
        str | None,
        arg(
            metavar="DIR_OR_ID",
            help="of a model of transformers, the folder or Hugging Face id of its processor",
            help_behavior_hint="(default: the model's own)",
        ),
    ] = None
    prompt: Annotated[
        str | None,
        arg(
            metavar="TEXT",
            help="what a model that answers is asked of an image, where the data do not say",
            help_behavior_hint="(default: a usual one)",
        ),
    ] = None
    split: Annotated[
        str | None,
        arg(
            metavar="NAME",
            help="of the data, train, val or test; train+val takes both",
            help_behavior_hint="(default: train)",
        ),
    ] = None
    workers: Annotated[int, arg(metavar="N", help="background processes that read and decode images")] = 0

    def source(self, **others: Any) -> Source:
        """Return where batches come from and how they are made: as the command says, but for ``others``."""
        said = {field.name: getattr(self, field.name) for field in fields(Source) if hasattr(self, field.name)}
        return Source(**{**said, **others})


def own_first(settings: type[Settings]) -> type[Settings]:
    """Let the help of a command list its own options before those that it shares with others."""
    known: dict[str, Any] = settings.__dataclass_fields__  # type: ignore[attr-defined]
    own = settings.__annotations__
    ordered = [*(name for name in known if name in own), *(name for name in known if name not in own)]
    settings.__dataclass_fields__ = {name: known[name] for name in ordered}  # type: ignore[attr-defined]
    return settings


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
    args = _spread(settings, _gathered(settings, args))
    try:
        with redirect_stderr(said):
            read, unknown = tyro.cli(
                settings, prog=prog, description=description, args=args, return_unknown_args=True, config=STYLE
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        _check_task(settings, args)
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


def _gathered(settings: Any, args: Sequence[str]) -> list[str]:
    """Join the values of an option that takes several and is given again.

    tyro would take the last ones and forget those before them; of an option that takes one value the last counts, as is
    usual.
    """
    several = {_option(name) for name, hint in _hints(settings) if get_origin(hint) is tuple}
    written: list[tuple[str, list[str]]] = []  # option, and its words
    values: dict[str, list[str]] = {}
    words = [*args]
    while words:
        given = [words.pop(0)]
        option, equals, joined = given[0].partition("=")
        if option in several:
            while not equals and words and not words[0].startswith("--"):
                given.append(words.pop(0))
            values.setdefault(option, []).extend([joined] if equals else given[1:])
        written.append((option, given))
    again = [option for option in values if sum(of == option for of, _ in written) > 1]
    # at the end, where no positional argument follows that would count as one more value
    return [word for option, given in written if option not in again for word in given] + [
        word for option in again for word in (option, *values[option])
    ]


def _hints(settings: Any) -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(settings).items():
        if is_dataclass(hint):
            yield from _hints(hint)
        else:
            yield name, hint


def _check_task(settings: Any, args: Sequence[str]) -> None:
    """Refuse a task that nobody knows before anything that is missing behind it."""
    if fields(settings)[0].name == "task" and args and not args[0].startswith("-") and "--modules" not in args:
        from multiflow.tasks.task import TASKS

        TASKS[args[0]]  # its error names those that are known


def _spread(settings: Any, args: Sequence[str]) -> list[str]:
    """Write numbers of which an option takes several apart, and those in percent as shares: ``0.5,75%`` is 0.5 0.75."""
    hints = get_type_hints(settings)
    several = {_option(name) for name, hint in hints.items() if hint == tuple[float, ...] or name == "sparsity"}
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


def run_settings(settings: Any, free: Sequence[str]) -> dict[str, Any]:
    """Return the settings that decide what a run computes, as plain values: those that differ from their defaults.

    Args:
        settings: of the command.
        free: names of those that do not alter what comes out.
    """
    given = asdict(settings)
    decisive = [field for field in fields(settings) if field.name not in free]
    changed = {field.name: given[field.name] for field in decisive if given[field.name] != field.default}
    return changed | ({"processes": world()} if world() > 1 else {})


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


def chosen_adapter(model: nn.Module, settings: LayerOptions) -> Adapter:
    """Return the adapter that the options ask for."""
    if settings.adapter is None:
        return adapter_for(
            model, exclude=settings.exclude, groups=read_groups(settings.group) or None, tokens=settings.tokens
        )
    changes = [name for name in ("exclude", "group") if getattr(settings, name)]
    if changes or settings.tokens != "all":
        raise MultiflowError(
            f"--{(changes or ['tokens'])[0]} was given with --adapter {settings.adapter}; say it in that file"
        )
    return read_adapter(settings.adapter, model)


def read_groups(given: Sequence[str]) -> Mapping[str, str]:
    """Read ``NAME=REGEX`` pairs."""
    groups = {}
    for text in given:
        name, equals, regex = text.partition("=")
        if not (name and equals and regex):
            raise MultiflowError(f"--group '{text}' is not NAME=REGEX, such as vision='^vision_model'")
        groups[name] = regex
    return groups


def read_adapter(path: str, model: nn.Module) -> Adapter:
    """Import a Python file and return its adapter."""
    if not (path.endswith(".py") and Path(path).is_file()):
        raise MultiflowError(f"--adapter '{path}' is no Python file; give one that defines 'adapter'")
    import_modules([path])
    found: Any = getattr(sys.modules[Path(path).stem], "adapter", None)
    if callable(found) and not isinstance(found, Adapter):
        found = found(model)
    if not isinstance(found, Adapter):
        what = "defines no 'adapter'" if found is None else f"has a {type(found).__name__} called 'adapter'"
        raise MultiflowError(
            f"'{path}' {what}; let it say adapter = mf.Adapter(groups={{...}}), or def adapter(model) that returns one"
        )
    return found


BAD_INPUT = 2


@contextmanager
def processes(device: str, settings: Any = None) -> Iterator[str]:
    """Join the processes that ``torchrun`` has started, for the time of the block; yield the device of this one.

    What ends one of them ends all of them: the first says so, and the exit code is that of bad input. Alone, a process
    keeps the device that was given.

    Args:
        device: as it was given.
        settings: of the command, whose options errors name.
    """
    size, local = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    if size == 1 or "RANK" not in os.environ:
        yield device
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        with together():
            yield own_device(device, local, size)
    except MultiflowError as error:
        if rank() == 0:
            say(f"error: {error.worded(option_of(settings))}")
        with suppress(Ended):
            exchange("said")  # torchrun stops the others as soon as one is gone
        raise SystemExit(BAD_INPUT) from None
    finally:
        dist.destroy_process_group()


def own_device(device: str, local: int, size: int) -> str:
    """Return the device of the process ``local`` on this machine: each has a GPU of its own.

    >>> own_device("cpu", 1, 2)
    'cpu'
    """
    found = find_device(device)
    if found.type != "cuda":
        return device
    if found.index is not None:
        raise MultiflowError(f"--device {device} is one GPU, and there are {size} processes; give --device cuda")
    own = find_device(f"cuda:{local}")
    torch.cuda.set_device(own)
    return str(own)
