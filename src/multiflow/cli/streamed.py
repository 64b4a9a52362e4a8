"""``multiflow prune --stream``: one block of the model at a time in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from multiflow.base.adapter import Adapter
from multiflow.base.artifacts import read_facts, write_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.guards import exclusively
from multiflow.families.opening import find_device, open_streamed, quiet_transformers
from multiflow.pruning.plan import Request, make_plan
from multiflow.pruning.result import Result
from multiflow.pruning.stream import WORK, stream

ANEW = "weights"  # in `WORK`: weights that their files hold in another form
DATA = "data.json"  # in `WORK`: what was read


class Streamed(Protocol):
    """The settings that a streamed run looks at."""

    @property
    def stream(self) -> bool: ...
    @property
    def sequential(self) -> bool: ...
    @property
    def family(self) -> str | None: ...
    @property
    def config(self) -> str | None: ...
    @property
    def trust_remote_code(self) -> bool: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def until_stable(self) -> bool: ...


def check_options(settings: Streamed) -> None:
    """Refuse options that do not go together with ``--stream``, or not without it."""
    if not settings.stream:
        if settings.sequential:
            raise MultiflowError("--sequential was given without --stream, which walks block by block; give both")
        return
    given = {
        "dtype": settings.dtype != "auto",
        "config": settings.config is not None,
        "until-stable": settings.until_stable,
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise MultiflowError(f"--{name} was given with --stream, which takes a folder as it is; leave one of them out")


def open_for_stream(settings: Streamed, place: str, out: Path) -> nn.Module:
    """Open the model of a run; weights that are put into another form lie in its folder."""
    anew = out / WORK / ANEW
    shutil.rmtree(anew, ignore_errors=True)
    with quiet_transformers():
        return open_streamed(place, anew, settings.family, trust_remote_code=settings.trust_remote_code)


def run_stream(
    settings: Streamed, asked: Request, model: nn.Module, adapter: Adapter, batches: Any, out: Path, progress: Any
) -> tuple[Result, Any]:
    """Prune, and return the result and what was read of the data, on which a run that goes on does not look again."""
    given = None if batches is None else _Remembered(batches, out / WORK / DATA)
    plan = make_plan(asked, model, given, adapter=adapter, seed=settings.seed, progress=progress)
    device = find_device(settings.device)

    @exclusively("pruning")
    def run(_: nn.Module) -> Result:
        return stream(plan, out, sequential=settings.sequential, device=device)

    return run(model), given and given.summary()


class _Remembered:
    """Batches whose account is written down when all were taken."""

    def __init__(self, batches: Any, place: Path) -> None:
        self._batches, self._place = batches, place

    def __iter__(self) -> Iterator[Any]:
        yield from self._batches
        write_facts(self._place, self._batches.summary())

    def summary(self) -> Any:
        return (
            read_facts(self._place, "account of the data", f"delete '{self._place.parent}' to begin afresh")
            if self._place.is_file()
            else None
        )
