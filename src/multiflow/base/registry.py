"""Named things: the one place where pruners, allocations, families and commands are looked up."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Generic, TypeVar

from multiflow.base.errors import MultiflowError, unknown

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to records that knows what its records are called.

    >>> colours = Registry("colour"); colours.add("red", 1); colours["red"]
    1
    """

    def __init__(self, kind: str, homes: Iterable[str] = ()) -> None:
        """Take what a record is called, and the modules that register records, imported at the first look."""
        self.kind = kind
        self._homes = tuple(homes)
        self._records: dict[str, T] = {}

    def _look(self) -> dict[str, T]:
        homes, self._homes = self._homes, ()
        for home in homes:
            importlib.import_module(home)
        return self._records

    def add(self, name: str, record: T, *, replace: bool = False) -> None:
        """Register a record; a name that is taken is an error unless ``replace``."""
        if name in self._records and not replace:
            raise MultiflowError(f"{self.kind} '{name}' is registered already; choose another name")
        self._records[name] = record

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise unknown(self.kind, str(name), self._look())
        return self._look()[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._look()

    def __iter__(self) -> Iterator[str]:
        return iter(self._look())

    def __len__(self) -> int:
        return len(self._look())


def import_modules(modules: Iterable[str]) -> None:
    """Import Python files and modules, so that the pruners in them are registered.

    Raises:
        MultiflowError: there is no such file or module, or it fails.
    """
    for name in modules:
        try:
            _import(name)
        except MultiflowError:
            raise
        except Exception as error:
            raise MultiflowError(
                f"module '{name}' cannot be imported ({type(error).__name__}: {error}); give a Python file or the name "
                "of a module"
            ) from error


def _import(name: str) -> None:
    if not name.endswith(".py"):
        importlib.import_module(name)
        return
    path = Path(name).resolve()
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", None) == str(path):
        return
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise MultiflowError(f"module '{name}' is no Python file; give one")
    sys.modules[path.stem] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
