"""The walk: every unit of a model meets all calibration data before the next one is looked at.

The model's own code runs for each part of a batch again and again. Units that have run before give what they gave then
(`multiflow.pruning.stream.records`), the block whose turn it is runs and is measured, and at the next one the run
breaks off. So nothing must be known of how a model calls its blocks, and what is between them needs no memory of its
own. A record that no run holds or looks at any more loses its bytes.

After each turn of a block the walk is written down: one that was killed goes on there.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, parts
from multiflow.base.artifacts import read_facts, write_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.runs import check_same
from multiflow.base.steps import Step
from multiflow.base.types import Layout
from multiflow.calibration import (
    Stats,
    collect,
    evaluating,
    give_back_memory,
    iterate,
    to_device,
    unannounced,
)
from multiflow.calibration.batches import check_some
from multiflow.pruning.stream.records import AFRESH, CannotStore, Replay, let_go, read_all, read_record, write_record
from multiflow.pruning.stream.units import Stage, Unit

JOURNAL, LISTED = "walk.json", "batches.json"
RECORD = re.compile(r"(\d+)-(.+)\.act")
Turn = Callable[[Unit, Stats | None, int], None]
"""``f(unit, its statistics, how many turns it has had before)``, called while the weights of the unit are there."""


Data = Sequence[tuple[Path, int]]
"""The records of the parts of batches, with the number of the batch."""


def take_in(batches: Iterable[Any], folder: Path, device: torch.device) -> Data:
    """Keep the parts of all batches on the disk; once that is done, the batches are not looked at again.

    Raises:
        MultiflowError: no batches, or one that cannot be kept.
    """
    place = folder / LISTED
    if not place.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        numbers: list[int] = []
        for number, batch in enumerate(iterate(batches), start=1):
            if batch is None:
                raise MultiflowError(f"batch {number} is None; expected a dict, a tuple or a tensor")
            for part in parts(to_device(batch, device)):
                try:
                    write_record(folder / f"{len(numbers):05d}.act", part)
                except CannotStore as error:
                    raise MultiflowError(
                        f"batch {number} holds {error}, which cannot be kept on the disk; give batches of tensors, "
                        "numbers, texts, and lists and mappings of them"
                    ) from error
                numbers.append(number)
        check_some(len(numbers), 0)
        write_facts(place, {"numbers": numbers})
    numbers = _read_json(place, numbers=list)["numbers"]
    return [(folder / f"{at:05d}.act", number) for at, number in enumerate(numbers)]


def _read_json(place: Path, **kinds: type) -> dict[str, Any]:
    found = read_facts(place, "record of a walk", AFRESH)
    try:
        if not all(isinstance(found[name], kind) for name, kind in kinds.items()):
            raise ValueError("values of other kinds")
        if not all(type(one) is int for name, kind in kinds.items() if kind is list for one in found[name]):
            raise ValueError("other things than numbers")
    except (ValueError, KeyError) as error:
        raise _damaged(place, repr(error)) from error
    return found


def _damaged(place: Path, why: str) -> MultiflowError:
    return MultiflowError(f"'{place}' is damaged ({why}); {AFRESH}")


class _Stop(BaseException):
    """Breaks a run off at a block whose turn has not come."""


@dataclass
class _Item:
    """A part of a batch on its way: the files of its records, and the block that it waits for."""

    folder: Path
    number: int  # of its batch, from 1
    part: Path
    records: dict[str, Path] = field(default_factory=dict)
    waits_for: Unit | None = None
    idle: set[Path] = field(default_factory=set)
    ended: bool = False  # the model ran to its end with it: its records may have lost their bytes


class Walk:
    """A model on its way through its blocks.

    Args:
        model: whose weights hooks of accelerate bring.
        adapter: how to run it.
        units: its pieces, see `find_units`.
        data: the parts of batches, see `take_in`.
        names: the statistics to measure.
        folder: for records and journal.
        settings: of the run; a folder of another run is refused.
        device: where the model runs.
        twice: whether each block runs once to be measured, and again after its turn, as it is then.
        progress: told of every block.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter,
        units: Sequence[Unit],
        data: Data,
        names: Sequence[str],
        folder: Path,
        settings: Mapping[str, Any],
        device: torch.device,
        *,
        twice: bool = False,
        progress: Step | None = None,
    ) -> None:
        self._model, self._adapter, self._units, self._names = model, adapter, units, names
        self._folder, self._device, self._twice, self._progress = folder, device, twice, progress
        self._settings = json.loads(json.dumps(dict(settings)))
        self._stage = Stage(model, units, device)
        places = (folder / path.stem for path, _ in data)
        self._items = [_Item(to, number, path) for to, (path, number) in zip(places, data, strict=True)]
        self._done: list[int] = []  # numbers of the blocks whose turn is over
        self.batches = max((number for _, number in data), default=0)
        # of the run that is going on
        self._item = _Item(Path(), 0, Path())
        self._reading = Replay(device)
        self._current: Unit | None = None
        self._calls: dict[str, int] = {}
        self._around: list[str] = []
        self._breaks_off = False

    def run(self, turn: Turn) -> None:
        """Walk; ``turn`` is called for each block when all items have come to it, and after a kill not again.

        A block that is called once more (on a second sequence, say) has another turn, with the statistics of those
        calls alone.
        """
        with self._stage.calls_go_to(self._called), evaluating(self._model), torch.no_grad():
            self._resume()
            for item in self._items:
                if not item.ended:
                    self._run(item)
            self._stage.forget()
            prunable = [unit for unit in self._units if unit.layers]
            while waiting := [item.waits_for for item in self._items if item.waits_for]:
                if self._is_over(prunable, waiting):
                    break
                self._take_turn(min(waiting, key=lambda unit: unit.number), turn)
                if self._progress:
                    self._progress("stream", len(self._done), len([unit for unit in self._units if unit.is_block]))

    def _is_over(self, prunable: Sequence[Unit], waiting: Sequence[Unit]) -> bool:
        """Whether all blocks had their turns and nothing waits that may call one of them again."""
        return all(unit.number in self._done for unit in prunable) and not any(unit.layers for unit in waiting)

    def turns(self, unit: Unit) -> int:
        """How many turns a unit has had."""
        return self._done.count(unit.number)

    @property
    def missed(self) -> list[str]:
        """Layers of blocks that no item came to."""
        return [layer.name for unit in self._units if unit.number not in self._done for layer in unit.layers]

    # what is written down

    def _write_down(self) -> None:
        ended = [number for number, item in enumerate(self._items) if item.ended]
        state = {"settings": self._settings, "done": self._done, "ended": ended}
        write_facts(self._folder / JOURNAL, state)

    def _resume(self) -> None:
        """Take over what was written down, and the records of the turns that were over; or begin."""
        place = self._folder / JOURNAL
        if place.is_file():
            state = _read_json(place, settings=dict, done=list, ended=list)
            fix = "use the same ones, or delete it to begin afresh"
            check_same(f"'{self._folder}'", state["settings"], self._settings, fix=fix)
            self._done = state["done"]
            if not set(self._done) <= {unit.number for unit in self._units}:
                raise _damaged(place, "it names other blocks than the model's")
            for number in state["ended"]:
                if not 0 <= number < len(self._items):
                    raise _damaged(place, "it names other parts of batches than there are")
                self._items[number].ended = True
        for item in self._items:
            for path in sorted(item.folder.glob("*")):
                found = RECORD.fullmatch(path.name)
                if found is None or int(found[1]) > len(self._done) or not place.is_file():
                    path.unlink()  # of a turn that was not over
                else:
                    item.records[found[2]] = path
        self._write_down()

    # the turn of a block

    def _take_turn(self, unit: Unit, turn: Turn) -> None:
        items = [item for item in self._items if item.waits_for is unit]
        self._current = unit
        self._stage.bring(unit)
        stats = None
        if unit.layers and self._names:
            self._breaks_off = self._twice
            stats = self._measure(unit, items)
            self._breaks_off = False
        turn(unit, stats, self.turns(unit))
        if self._twice or stats is None:
            for item in items:
                self._run(item)
        self._current = None
        # what was found is written by now; then the walk is written down, then what nobody needs can go
        self._done.append(unit.number)
        self._write_down()
        for item in items:
            for path in item.idle:
                let_go(path)
        self._stage.forget()
        give_back_memory()

    def _measure(self, unit: Unit, items: Sequence[_Item]) -> Stats:
        def given() -> Iterator[Any]:
            for item in items:
                yield self._open(item)

        with warnings.catch_warnings(), unannounced():
            if self._done:
                warnings.filterwarnings("ignore", r"\d+% of the tokens are padding")  # said at the first block
            stats = collect(
                self._model,
                Layout(unit.layers),
                given(),
                lambda model, part: self._forward(part),
                split=lambda part: [part],
                stream=self._adapter.stream,
                token_masks=self._adapter.token_masks,
                names=self._names,
            )
        return Stats(stats.sums, stats.counts, self.batches)

    # one run of the model

    def _run(self, item: _Item) -> None:
        self._forward(self._open(item))

    def _open(self, item: _Item) -> Any:
        """Begin a run: read the item's part of a batch back."""
        self._item, self._reading = item, Replay(self._device)
        self._calls, self._around = {}, []
        return read_record(item.part, self._reading)

    def _forward(self, part: Any) -> None:
        item = self._item
        item.waits_for = None
        try:
            self._adapter.forward(self._model, part)
        except _Stop:
            return
        item.idle, item.ended = self._reading.opened - {item.part}, True

    def _called(self, unit: Unit, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give what a unit gave before, or run it: light ones at once, a block when its turn has come."""
        key = ".".join([*self._around, f"{unit.number}"])
        self._calls[key] = self._calls.get(key, 0) + 1
        key = f"{key}@{self._calls[key]}"
        item = self._item
        if (path := item.records.get(key)) is not None:
            return read_record(path, self._reading)
        if unit.is_around:
            return self._pass_through(unit, key, run, args, kwargs)
        if unit.is_block and unit is not self._current:
            item.waits_for = unit
            item.idle = self._reading.idle() - {item.part}
            raise _Stop
        self._stage.bring(unit)
        args, kwargs = read_all(args), read_all(kwargs)
        before = _versions(args, kwargs)
        out = run(*args, **kwargs)
        if self._breaks_off and unit is self._current:
            item.waits_for = unit
            raise _Stop
        if before != _versions(args, kwargs):
            raise MultiflowError(
                f"block '{unit.path}' writes into what it is given, which cannot be carried from block to block; prune "
                "in memory"
            )
        try:
            self._keep(key, out)
        except CannotStore as error:
            raise MultiflowError(
                f"block '{unit.path}' gives {error}, which cannot be kept on the disk; prune in memory"
            ) from error
        return out

    def _pass_through(
        self, unit: Unit, key: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run what is around units; once it has come to its end it need not run again, if what it gives can be kept."""
        before, self._around = self._around, [key]
        try:
            given = _versions(args, kwargs)
            out = run(*args, **kwargs)
        finally:
            self._around = before
        if given == _versions(args, kwargs) and self._tells_nobody(unit, kwargs):
            with suppress(CannotStore):
                self._keep(key, out)
        return out

    def _tells_nobody(self, unit: Unit, kwargs: Mapping[str, Any]) -> bool:
        """Whether nothing but what it gives comes out of a module: no hook inside collects states for one around it."""
        module = self._model.get_submodule(unit.path)
        asked = hasattr(module, "_no_split_modules") and any(
            name.startswith("output_") and on for name, on in kwargs.items()
        )
        return asked or not any(one._forward_hooks for one in module.modules())

    def _keep(self, key: str, value: Any) -> None:
        item = self._item
        path = item.folder / f"{len(self._done) + (self._current is not None):05d}-{key}.act"
        try:
            write_record(path, value)
        except CannotStore:
            path.unlink(missing_ok=True)
            raise
        item.records[key] = path


def _versions(*values: Any) -> list[int]:
    """How often each tensor was written to; of those that were not read yet, never."""
    found: list[int] = []
    stack = list(values)
    while stack:
        one = stack.pop()
        if isinstance(one, Tensor):
            found.append(-1 if one.is_inference() else one._version)
        elif isinstance(one, Mapping):
            stack += one.values()
        elif isinstance(one, list | tuple):
            stack += one
    return found
