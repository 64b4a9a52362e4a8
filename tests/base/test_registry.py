"""Records are found because their file or folder lies in a package, and can be added from outside."""

from __future__ import annotations

import sys

import pytest

from multiflow import MultiflowError
from multiflow.base.registry import Registry, import_modules, resolve

RECORD = "from {package}_table import TABLE\nTABLE.add('{name}', '{name}')\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one file and one folder that register a record each, a private file, and the table beside it."""
    name, folder = "found_by_place", tmp_path / "found_by_place"
    (folder / "square").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "circle.py").write_text(RECORD.format(package=name, name="circle"))
    (folder / "square" / "__init__.py").write_text(RECORD.format(package=name, name="square"))
    (folder / "_machinery.py").write_text("raise RuntimeError('imported')")
    (tmp_path / f"{name}_table.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield name
    for module in set(sys.modules) - before:
        del sys.modules[module]


def table(package, **options):
    found = resolve(f"{package}_table").__dict__.setdefault("TABLE", Registry("shape", package, **options))
    return found


def test_files_and_folders_of_a_package_are_found_at_the_first_look(package):
    shapes = table(package)
    assert f"{package}.circle" not in sys.modules
    assert dict(shapes) == {"circle": "circle", "square": "square"}


def test_folders_alone(package):
    assert list(table(package, folders=True)) == ["square"]


def test_modules_that_are_records_are_imported_when_they_are_asked_for(package, tmp_path):
    (tmp_path / package / "oval.py").write_text("corners = 0")
    table = Registry("shape", package, late=True)
    table.add("star", "a record from outside")
    assert list(table) == ["star", "circle", "oval", "square"]
    assert not [name for name in sys.modules if name.startswith(f"{package}.")]
    assert (table["oval"].corners, table["star"]) == (0, "a record from outside")
    assert [name for name in sys.modules if name.startswith(f"{package}.")] == [f"{package}.oval"]


def test_records_from_outside_stand_in_the_order_that_was_given(package):
    shapes = table(package, order=lambda name, record: name)
    shapes.add("arrow", "arrow")
    shapes.add("tower", "tower")
    assert list(shapes) == ["arrow", "circle", "square", "tower"]


def test_a_package_that_fails_fails_at_each_look(package, tmp_path):
    (tmp_path / package / "broken.py").write_text("raise ValueError('no')")
    shapes = table(package)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            len(shapes)


def test_an_unknown_name_and_one_that_is_taken():
    shapes = Registry("shape")
    shapes.add("circle", 1)
    with pytest.raises(MultiflowError, match="'circel'; known: circle; did you mean"):
        shapes["circel"]
    with pytest.raises(MultiflowError, match="'circle'"):
        shapes.add("circle", 2)
    shapes.add("circle", 2, replace=True)
    assert shapes["circle"] == 2


def test_resolve_takes_modules_attributes_and_places_in_a_package(package):
    assert resolve("json").__name__ == "json"
    assert resolve("json:loads")("[1]") == [1]
    table(package)
    assert resolve(".circle:TABLE", package) is resolve(f"{package}_table:TABLE")


def test_import_modules_takes_a_folder_whose_files_import_each_other(tmp_path):
    folder = tmp_path / "a_folder_from_outside"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .inner import VALUE\n")
    (folder / "inner.py").write_text("VALUE = []\n")
    try:
        import_modules([str(folder)])
        first = sys.modules[folder.name].VALUE
        import_modules([f"{folder}/"])
        assert sys.modules[folder.name].VALUE is first
    finally:
        for name in (folder.name, f"{folder.name}.inner"):
            sys.modules.pop(name, None)


def test_import_modules_names_what_it_cannot_import(tmp_path):
    empty = tmp_path / "no_package"
    empty.mkdir()
    for wrong in ("no_such_module_at_all", str(tmp_path / "none.py"), str(empty)):
        with pytest.raises(MultiflowError, match="cannot be imported") as error:
            import_modules([wrong])
        assert wrong in str(error.value)
