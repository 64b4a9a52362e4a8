"""What a walk carries from block to block: values with tensors in them, on a disk, read when they are looked at.

A record is a file: the form of a value as JSON (which tensor stands where, of which shape) with its length and CRC-32
before it, then the bytes of its tensors, whose CRC-32 are in the form. Read back, a large tensor is a `StoredTensor`:
it has shape, strides and type, and its bytes are read when something computes with it. One that is handed on and never
looked at costs nothing, and its bytes can go: `Replay` says which records a run of the model has looked at, and which
it still holds.
"""

from __future__ import annotations

import io
import json
import os
import sys
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from multiflow.base.errors import MultiflowError
from multiflow.base.files import open_regular

ALIGNED = 64  # bytes: where the tensors of a file begin
SMALL = 1 << 14  # bytes of a tensor that is read at once
NUMBERS = 8  # bytes of the length of a form, and of its CRC-32
MOST_FORM = 1 << 30  # bytes
AFRESH = "delete its folder to begin afresh"
PLAIN = (bool, int, float, str, type(None))


class CannotStore(Exception):
    """A value that has no form as JSON and tensors."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where a tensor lies in a file, and how it lay in memory.

    Args:
        path: of the file.
        begin: its first byte.
        dtype: its type.
        shape: its shape.
        order: dimensions from the slowest to the fastest in memory.
        spread: dimensions that repeat one value (stride 0).
        crc: CRC-32 of its bytes.
    """

    path: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    order: tuple[int, ...]
    spread: tuple[int, ...] = ()
    crc: int = 0

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of what is stored, dimensions in memory order."""
        return tuple(1 if dim in self.spread else self.shape[dim] for dim in self.order)

    @property
    def size(self) -> int:
        """Bytes of what is stored."""
        count = 1
        for length in self.kept:
            count *= length
        return count * self.dtype.itemsize

    def like(self, whole: Tensor) -> Tensor:
        """View what is stored, of shape `kept`, as the tensor that it was."""
        back = [0] * len(self.order)
        for at, dim in enumerate(self.order):
            back[dim] = at
        return whole.permute(back).expand(self.shape)

    def read(self, device: torch.device) -> Tensor:
        """Read the tensor."""
        whole = torch.empty(self.kept, dtype=self.dtype)
        if whole.numel():
            with _opened(self.path) as file:
                file.seek(self.begin)
                if file.readinto(bytes_of(whole)) != self.size:  # cut, or let go, when none of this library reads them
                    raise MultiflowError(f"the bytes of '{self.path}' are gone; {AFRESH}")
                if zlib.crc32(bytes_of(whole)) != self.crc:
                    raise _altered(self.path)
        return self.like(whole.to(device))


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, to read from and to write to."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


class Replay:
    """One run of a model over records: what was read back, what was looked at, what is still held.

    Args:
        device: where tensors are read to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.opened: set[Path] = set()
        self.touched: set[Path] = set()
        self._handed: list[weakref.ref[StoredTensor]] = []

    def hand_out(self, place: TensorPlace) -> Tensor:
        """Give a tensor, which is read now if it is small and when it is looked at otherwise."""
        if place.size <= SMALL or not place.dtype.is_floating_point:
            self.touched.add(place.path)
            return place.read(self.device)
        stored = StoredTensor(place, self)
        self._handed.append(weakref.ref(stored))
        return stored

    def idle(self) -> set[Path]:
        """The files that were read back, that nobody has looked at and that nobody holds any more."""
        held = {stored.place.path for of in self._handed if (stored := of()) is not None}
        return self.opened - self.touched - held


class StoredTensor(Tensor):
    """A tensor whose bytes are in a file until something computes with it."""

    place: TensorPlace
    reading: Replay
    _value: Tensor | None

    @staticmethod
    def __new__(cls, place: TensorPlace, reading: Replay) -> StoredTensor:
        """Make a tensor of the right shape without memory."""
        like = place.like(torch.empty(place.kept, dtype=place.dtype, device="meta"))
        return torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=place.dtype, device=reading.device
        )

    def __init__(self, place: TensorPlace, reading: Replay) -> None:
        self.place, self.reading, self._value = place, reading, None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Read what is computed with."""
        return func(*tree_map(_looked_at, args), **tree_map(_looked_at, kwargs or {}))

    def value(self) -> Tensor:
        """Read the tensor, once; what is written to it stays."""
        if self._value is None:
            self._value = self.place.read(self.reading.device)
        return self._value

    @property
    def is_read(self) -> bool:
        """Whether it has been read; from then on somebody may have written to it."""
        return self._value is not None


def _looked_at(value: Any) -> Any:
    if not isinstance(value, StoredTensor):
        return value
    value.reading.touched.add(value.place.path)
    return value.value()


def read_all(value: Any) -> Any:
    """Give a value with its stored tensors read, without a note that they were looked at."""
    return tree_map(lambda one: one.value() if isinstance(one, StoredTensor) else one, value)


def write_record(path: Path, value: Any) -> None:
    """Write a value to a file, whole or not at all.

    Raises:
        CannotStore: it holds something else than tensors, numbers, texts, and lists, mappings and dataclasses of them.
    """
    writer = _Writer()
    form = json.dumps(writer.form(value)).encode()
    form += b" " * (-(2 * NUMBERS + len(form)) % ALIGNED)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".tmp")
    with half.open("wb") as file:
        file.write(len(form).to_bytes(NUMBERS, "little") + zlib.crc32(form).to_bytes(NUMBERS, "little") + form)
        for tensor in writer.tensors:
            file.write(bytes_of(tensor))
            file.write(b"\0" * (-file.tell() % ALIGNED))
    half.replace(path)


def read_record(path: Path, reading: Replay) -> Any:
    """Read a value back, its large tensors as `StoredTensor`."""
    reading.opened.add(path)
    form, begin = _head(path)
    return _Reader(path, begin, reading).value(form)


def let_go(path: Path) -> None:
    """Delete the bytes of a record's tensors; their form stays."""
    os.truncate(path, _head(path)[1])


def _head(path: Path) -> tuple[Any, int]:
    """The form of a record, and where its tensors begin."""
    with _opened(path) as file:
        length, crc = (int.from_bytes(file.read(NUMBERS), "little") for _ in range(2))
        form = file.read(min(length, MOST_FORM))
    if not form or len(form) != length or zlib.crc32(form) != crc:
        raise _altered(path)
    return json.loads(form), 2 * NUMBERS + length


def _altered(path: Path) -> MultiflowError:
    return MultiflowError(f"'{path}' was altered: its checksum does not fit; {AFRESH}")


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a record to read it; one that is gone, or no file any more, is an error in one sentence."""
    try:
        with io.BufferedReader(open_regular(path)) as file:
            yield file
    except OSError as error:
        raise MultiflowError(f"cannot read '{path}' ({error.strerror or error}); {AFRESH}") from error


class _Writer:
    """Takes a value apart: its form, and the tensors to write behind it."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._seen: dict[int, list[Any]] = {}
        self._end = 0

    def form(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in self._seen:
                self._seen[id(value)] = self._tensor(value)
            return {"tensor": self._seen[id(value)]}
        if isinstance(value, PLAIN):
            return {"plain": value}
        if is_dataclass(value) and not isinstance(value, type):
            there = [(f.name, one) for f in fields(value) if (one := getattr(value, f.name, None)) is not None]
            return {"kind": _kind(value), "fields": [[name, self.form(one)] for name, one in there]}
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise CannotStore("a mapping with other keys than names")
            return {"mapping": [[key, self.form(one)] for key, one in value.items()]}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {"kind": _kind(value), "items": [self.form(one) for one in value]}
        if isinstance(value, list | tuple):
            return {"list" if isinstance(value, list) else "tuple": [self.form(one) for one in value]}
        raise CannotStore(f"a {type(value).__name__}")

    def _tensor(self, tensor: Tensor) -> list[Any]:
        """File (None = this one), first byte, type, shape, order, spread dimensions, CRC-32."""
        if isinstance(tensor, StoredTensor):
            if not tensor.is_read:
                of = tensor.place
                return [of.path.name, of.begin, _name(of.dtype), of.shape, of.order, of.spread, of.crc]
            tensor = tensor.value()
        if tensor.layout != torch.strided or tensor.is_quantized or type(tensor) not in (Tensor, torch.nn.Parameter):
            raise CannotStore(f"a {type(tensor).__name__} of layout {tensor.layout}")
        shape, strides = tuple(tensor.shape), tensor.stride()
        order = sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim))
        spread = [dim for dim in order if strides[dim] == 0 and shape[dim] > 1]
        for dim in spread:
            tensor = tensor.narrow(dim, 0, 1)
        whole = tensor.detach().permute(order).resolve_conj().resolve_neg().contiguous().cpu()
        begin = self._end
        self.tensors.append(whole)
        self._end += whole.numel() * whole.element_size()
        self._end += -self._end % ALIGNED
        crc = zlib.crc32(bytes_of(whole)) if whole.numel() else 0
        return [None, begin, _name(whole.dtype), shape, order, spread, crc]


class _Reader:
    """Puts a value together again."""

    def __init__(self, path: Path, begin: int, reading: Replay) -> None:
        self._path, self._reading = path, reading
        self._begin = begin + -begin % ALIGNED
        self._seen: dict[str, Tensor] = {}

    def value(self, form: Mapping[str, Any]) -> Any:
        if "tensor" in form:
            key = json.dumps(form["tensor"])
            if key not in self._seen:
                self._seen[key] = self._tensor(*form["tensor"])
            return self._seen[key]
        if "plain" in form:
            return form["plain"]
        if "mapping" in form:
            return {key: self.value(one) for key, one in form["mapping"]}
        if "fields" in form:
            return _class(form["kind"])(**{name: self.value(one) for name, one in form["fields"]})
        if "items" in form:
            return _class(form["kind"])(*[self.value(one) for one in form["items"]])
        items = [self.value(one) for one in form.get("list", form.get("tuple"))]
        return items if "list" in form else tuple(items)

    def _tensor(
        self, of: str | None, begin: int, dtype: str, shape: list[int], order: list[int], spread: list[int], crc: int
    ) -> Tensor:
        path, begin = (self._path, self._begin + begin) if of is None else (self._path.with_name(of), begin)
        kind: torch.dtype = getattr(torch, dtype)
        return self._reading.hand_out(TensorPlace(path, begin, kind, tuple(shape), tuple(order), tuple(spread), crc))


def _kind(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(kind: str) -> Any:
    """Find a class that a record names: only in what is imported already, so that a file makes nothing run."""
    module, _, name = kind.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not (is_dataclass(found) or issubclass(found, tuple)):
        raise MultiflowError(f"the activations kept on the disk name '{kind}', which is not there; begin afresh")
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
