"""Named things: the one place where pruners, allocations, families and commands are looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from multiflow.errors import MultiflowError, unknown

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to records that knows what its records are called.

    >>> colours = Registry("colour"); colours.add("red", 1); colours["red"]
    1
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._records: dict[str, T] = {}

    def add(self, name: str, record: T, *, replace: bool = False) -> None:
        """Register a record; a name that is taken is an error unless ``replace``."""
        if name in self._records and not replace:
            raise MultiflowError(f"{self.kind} '{name}' is registered already; choose another name")
        self._records[name] = record

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise unknown(self.kind, str(name), self._records)
        return self._records[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._records

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)
