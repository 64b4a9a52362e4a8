"""The public face: what importing costs, and that the names of the contract are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import multiflow as mf
from tests import processes

STEPS = """
import json, sys, warnings
warnings.simplefilter("error")
found = {}

def look(step):
    heavy = [name for name in ("transformers", "PIL", "accelerate", "tyro") if name in sys.modules]
    found[step] = heavy, [name for name in sys.modules if name.startswith("multiflow.families.")]

import multiflow as mf
look("package")
import multiflow.data
look("loaders")
from multiflow.families.family import FAMILIES, model_types
list(model_types())
look("table")
found["metrics"] = mf.metrics.vqa_accuracy("no", ["no"] * 10), "metrics" in dir(mf)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    """What lies in memory after each step of a process of its own."""
    return json.loads(processes.run(processes.PYTHON, "-c", STEPS, check=True).stdout)


def test_import_loads_nothing_heavy(found):
    assert found["package"][0] == []


def test_importing_the_loaders_imports_no_transformers(found):
    assert "transformers" not in found["loaders"][0]


def test_looking_at_the_table_of_families_imports_no_model_and_no_transformers(found):
    heavy, modules = found["table"]
    assert "transformers" not in heavy
    assert [name for name in modules if name.count(".") > 2] == []


def test_metrics_are_reached_from_the_package_alone(found):
    assert found["metrics"] == [100.0, True]


def test_the_names_of_the_contract_are_there():
    names = "load_model prune Masks keep_sparse adapter_for Adapter original_names list_pruners MultiflowError"
    assert all(hasattr(mf, name) for name in names.split())
    assert all(hasattr(mf, name) for name in mf.__all__)
    assert len(set(mf.__all__)) == len(mf.__all__)
    assert set(mf.__all__) <= set(dir(mf))


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert mf.__version__ == version(mf.DISTRIBUTION)


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
