"""The public face: what importing costs, and that the names of the contract are there."""

from __future__ import annotations

from pathlib import Path

import pytest

import multiflow as mf
from tests import processes


def run(code: str) -> str:
    return processes.run(processes.PYTHON, "-c", code, check=True).stdout.strip()


def test_import_loads_nothing_heavy():
    loaded = (
        "import sys, multiflow; print([m for m in ('transformers', 'PIL', 'accelerate', 'tyro') if m in sys.modules])"
    )
    assert run(loaded) == "[]"


def test_the_names_of_the_contract_are_there():
    names = "load_model prune Masks keep_sparse adapter_for Adapter original_names list_pruners MultiflowError"
    assert all(hasattr(mf, name) for name in names.split())
    assert all(hasattr(mf, name) for name in mf.__all__)
    assert len(set(mf.__all__)) == len(mf.__all__)
    assert set(mf.__all__) <= set(dir(mf))


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert mf.__version__ == version("multiflow")


@pytest.mark.parametrize("name", ["base.errors", "base.registry", "base.types", "base.order", "pruning.result"])
def test_examples_in_docstrings_are_true(name):
    import doctest
    from importlib import import_module

    assert doctest.testmod(import_module(f"multiflow.{name}"), extraglobs={"mf": mf}).failed == 0


def test_dir_shows_public_names_alone():
    assert dir(mf) == sorted(mf.__all__)


def test_type_checkers_see_the_types():
    """``make check`` runs mypy --strict over the script of a user, tests/typed_script.py."""
    from importlib.resources import files

    assert files("multiflow").joinpath("py.typed").is_file()


def test_the_version_is_said_everywhere():
    root = Path(__file__).parents[1]
    assert f"version: {mf.__version__}\n" in (root / "CITATION.cff").read_text()
    assert (root / "CHANGELOG.md").read_text().splitlines()[2].startswith(f"## {mf.__version__} ")
