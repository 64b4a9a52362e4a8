"""Named things: the one place where pruners, families, tasks, layouts, engines and commands are looked up.

A record of ours is found because its file or folder lies in the package that its registry looks through; a record from
outside is added when its module is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Generic, TypeVar

from multiflow.base.errors import MultiflowError, unknown

T = TypeVar("T")


class _Later(str):
    """The name of a module that is a record and is not imported yet."""


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to records that knows what its records are called and where they are.

    Args:
        kind: what a record is called, for errors.
        package: whose modules register the records when they are imported, at the first look into the mapping; None
            where the records come from elsewhere. Modules whose name begins with ``_`` are left out.
        folders: of the package take the folders alone, each by its ``__init__``: its single files are machinery.
        late: the modules are the records, each imported when it is asked for: they may need libraries of their own.
        order: ``(name, record)`` -> what the records are sorted by in lists; None = as they were registered.

    >>> colours = Registry("colour"); colours.add("red", 1); colours["red"]
    1
    """

    def __init__(
        self,
        kind: str,
        package: str | None = None,
        *,
        folders: bool = False,
        late: bool = False,
        order: Callable[[str, T], Any] | None = None,
    ) -> None:
        self.kind = kind
        self._package = package
        self._folders = folders
        self._late = late
        self._order = order
        self._records: dict[str, T] = {}

    def _look(self) -> dict[str, T]:
        package, self._package = self._package, None  # a module that looks while it is imported sees what there is
        if package is not None:
            try:
                for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                    if not module.name.startswith("_") and (module.ispkg or not self._folders):
                        name = f"{package}.{module.name}"
                        if self._late:
                            self._records.setdefault(module.name, _Later(name))  # type: ignore[arg-type]
                        else:
                            importlib.import_module(name)
            except BaseException:
                self._package = package
                raise
        return self._records

    def add(self, name: str, record: T, *, replace: bool = False) -> None:
        """Register a record; a name that is taken is an error unless ``replace``."""
        if name in self._records and not replace:
            raise MultiflowError(f"{self.kind} '{name}' is registered already; choose another name")
        self._records[name] = record

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise unknown(self.kind, str(name), self)
        record = self._look()[name]
        if isinstance(record, _Later):
            record = self._records[name] = importlib.import_module(record)  # type: ignore[assignment]
        return record

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._look()

    def __iter__(self) -> Iterator[str]:
        records, order = self._look(), self._order
        return iter(records if order is None else sorted(records, key=lambda name: order(name, records[name])))

    def __len__(self) -> int:
        return len(self._look())

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self)})"


def resolve(reference: str, home: str | None = None) -> Any:
    """Import what a reference ``module:attribute`` names, or a whole ``module``; ``.module`` lies in package ``home``.

    >>> resolve("math:floor")(2.5)
    2
    """
    module, _, attribute = reference.partition(":")
    found = importlib.import_module(module, home)
    return getattr(found, attribute) if attribute else found


def import_modules(modules: Iterable[str]) -> None:
    """Import Python files, folders with an ``__init__.py`` and modules, so that the records in them are registered.

    Raises:
        MultiflowError: there is no such file, folder or module, or it fails.
    """
    for name in modules:
        try:
            _import(name)
        except MultiflowError:
            raise
        except Exception as error:
            raise MultiflowError(
                f"module '{name}' cannot be imported ({type(error).__name__}: {error}); give a Python file, a folder "
                "with an __init__.py, or the name of a module"
            ) from error


def _import(name: str) -> None:
    path = Path(name).resolve()
    inside: list[str] | None = None
    if path.is_dir() and (path / "__init__.py").is_file():
        path, inside = path / "__init__.py", [str(path)]
    elif not name.endswith(".py"):
        importlib.import_module(name)
        return
    called = path.stem if inside is None else path.parent.name
    if called in sys.modules and getattr(sys.modules[called], "__file__", None) == str(path):
        return
    spec = spec_from_file_location(called, path, submodule_search_locations=inside)
    if spec is None or spec.loader is None:
        raise MultiflowError(f"module '{name}' is no Python file; give one")
    sys.modules[called] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[called]
        raise
