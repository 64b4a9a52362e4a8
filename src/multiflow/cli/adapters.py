"""Which layers of a model, by the options of the command line: the model's own adapter, changed, or one from a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeAlias

from torch import nn
from tyro.conf import arg

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError
from multiflow.base.registry import import_modules
from multiflow.families import adapter_for

Exclude: TypeAlias = Annotated[
    str | None,
    arg(metavar="REGEX", help="module paths that stay dense besides", help_behavior_hint=""),
]
Group: TypeAlias = Annotated[
    tuple[str, ...],
    arg(metavar="NAME=REGEX ...", help="put the layers with these module paths into a group", help_behavior_hint=""),
]
Tokens: TypeAlias = Annotated[
    str,
    arg(metavar="WHICH", help="which tokens of a language model's input count: all, text or image"),
]
AdapterFile: TypeAlias = Annotated[
    str | None,
    arg(
        metavar="FILE.py",
        help="a Python file with 'adapter', an mf.Adapter or a function that makes one of the model",
        help_behavior_hint="",
    ),
]


class Chosen(Protocol):
    """Settings of a command with the four options."""

    @property
    def exclude(self) -> str | None: ...
    @property
    def group(self) -> tuple[str, ...]: ...
    @property
    def tokens(self) -> str: ...
    @property
    def adapter(self) -> str | None: ...


def chosen_adapter(model: nn.Module, settings: Chosen) -> Adapter:
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
