"""The house rules that a tool can see: packages that say what they are, no circles, no twins, files of one idea."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import multiflow as mf
from tests.house import tree

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "multiflow"
MODULES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LONGEST = 500  # lines of a file


@pytest.mark.parametrize("package", [path for path in SOURCE.iterdir() if (path / "__init__.py").exists()], ids=str)
def test_a_package_says_what_lives_there_and_what_may_not(package):
    lines = (ast.get_docstring(tree(package / "__init__.py")) or "").splitlines()
    assert len(lines) >= 3, f"{package.name}: three lines on what lives there and what may not"
    assert re.search(r"\b(not|no|nothing)\b", " ".join(lines), re.IGNORECASE)


@pytest.mark.parametrize(
    "name", [n for n in mf.__all__ if inspect.isroutine(value := getattr(mf, n)) or inspect.isclass(value)]
)
def test_a_public_name_and_what_it_offers_are_described(name):
    value = getattr(mf, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        offers = {
            n: m for n, m in vars(value).items() if n[0] != "_" and (inspect.isroutine(m) or isinstance(m, property))
        }
        assert [n for n, m in offers.items() if not inspect.getdoc(m)] == []


def test_no_file_imports_itself_by_way_of_others():
    graph = grimp.build_graph("multiflow", cache_dir=None, exclude_type_checking_imports=True)
    needs = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_two_classes_or_tables_have_one_name():
    """But for the folders of families: each describes a model in the same words."""
    homes = defaultdict(list)
    for path in MODULES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(path)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                called = getattr(getattr(node.value, "func", None), "id", None)
                if isinstance(node.value, ast.Dict | ast.DictComp) or called in ("dict", "Registry"):
                    homes.update(
                        {t.id: [*homes[t.id], path] for t in targets if isinstance(t, ast.Name) and t.id.isupper()}
                    )
    twins = {
        name: [str(path.relative_to(SOURCE)) for path in paths]
        for name, paths in homes.items()
        if len(paths) > len({folder_of_family(path) for path in paths} - {None}) and len(paths) > 1
    }
    assert twins == {}


def folder_of_family(path: Path) -> str | None:
    family = path.relative_to(SOURCE).parts
    return family[1] if family[0] == "families" and len(family) > 2 else None


NAMED = re.compile(r"(?<![\w/.-])(?:tests|src|docs|benchmarks)/[\w./-]*\w(?![\w*])")


@pytest.mark.parametrize("name", ["Makefile", "pyproject.toml", "CONTRIBUTING.md", "docs/architecture.md", ".ci/run"])
def test_paths_that_are_named_exist(name):
    named = NAMED.findall((ROOT / name).read_text())
    assert [path for path in named if "NAME" not in path and not (ROOT / path).exists()] == []


def test_files_are_of_one_idea():
    assert {str(p.relative_to(SOURCE)): n for p in MODULES if (n := len(p.read_text().splitlines())) > LONGEST} == {}


def private_uses(path: Path) -> Iterator[str]:
    """Lines of a test that take a private name from a module of the package, without a comment on the line."""
    module, lines = tree(path), path.read_text().splitlines()
    ours: set[str] = set()
    for node in ast.walk(module):
        found: list[str] = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "multiflow":
            ours |= {alias.asname or alias.name for alias in node.names}
            found = [alias.name for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
            found = [node.attr] if is_private(node.attr) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            strings = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            package = any(isinstance(a, ast.Name) and a.id in ours for a in node.args[:1])
            found = [s for s in strings if (package or s.startswith("multiflow.")) and is_private(s.rpartition(".")[2])]
        for name in found:
            if "#" not in lines[node.lineno - 1]:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {name}"


LONGEST_SENTENCE = 70  # characters of what an error says that a test may pin in one piece
GAP = re.compile(r"\.[*+]\??|\\[dw]\+?")


def pinned_sentences(path: Path) -> Iterator[str]:
    """Patterns of a test that hold a sentence, where the facts in it (what was given, expected, the fix) would do."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.keyword) and node.arg == "match":
            parts = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            if any(len(piece) >= LONGEST_SENTENCE for part in parts for piece in GAP.split(part) if piece):
                yield f"{path.relative_to(ROOT)}:{node.value.lineno}"


def test_tests_pin_facts_and_no_sentences():
    assert [where for path in TESTS for where in pinned_sentences(path)] == []


def test_tests_start_programs_in_one_way():
    """Which has a limit, and leaves nothing behind: `tests.processes`."""
    starting = {
        str(path.relative_to(ROOT))
        for path in TESTS
        for node in tree(path).body
        if path.name.startswith("test_") and isinstance(node, ast.Import) and node.names[0].name == "subprocess"
    }
    assert starting == set()


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_tests_call_no_private_names():
    assert [use for path in TESTS for use in private_uses(path)] == []
