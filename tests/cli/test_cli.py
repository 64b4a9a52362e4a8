from __future__ import annotations

import os
import sys
import warnings
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from multiflow import cli
from multiflow.cli import COMMANDS
from tests import processes
from tests.cli.conftest import Run


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_command_of_the_registry(run: Run, args: tuple[str, ...]) -> None:
    ran = run(*args)
    assert ran.code == 0
    assert ran.err == ""
    for command in COMMANDS.values():
        assert f" {command.name} " in ran.out
        assert command.summary in ran.out


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = """
import sys
from multiflow.cli import main
assert main(["--help"]) == 0
assert main(["--version"]) == 0
assert main(["prun"]) == 2
heavy = {"torch", "transformers", "tyro", "numpy", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    done = processes.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_version(run: Run) -> None:
    from multiflow import __version__

    assert run("--version") == (0, f"multiflow {__version__}\n", "")


@pytest.mark.parametrize(
    ("word", "meant"), [("prun", "prune"), ("aply", "apply"), ("--hepl", "--help"), ("--versoin", "--version")]
)
def test_unknown_command_or_option(run: Run, word: str, meant: str) -> None:
    error = run(word).error
    assert f"'{word}'" in error
    assert error.endswith(f"did you mean '{meant}'?")


def test_unknown_command_lists_the_known_ones(run: Run) -> None:
    assert "known: " + ", ".join(COMMANDS) in run("qqqq").error


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_every_command_has_an_example_and_explains_every_option(run: Run, name: str) -> None:
    ran = run(name, "--help")
    assert ran.code == 0
    assert ran.err == ""
    for line in COMMANDS[name].example.splitlines():
        assert line.startswith(f"multiflow {name}")
        assert line in ran.out
    settings, _ = COMMANDS[name].load()
    text = " ".join(ran.out.replace("│", " ").split())
    for option in options(settings):
        assert option in text, option
    assert "(default: None)" not in text


def flat_fields(settings: type) -> list[Field[Any]]:
    """The fields of a settings class, those of nested settings in their place."""
    hints = get_type_hints(settings)
    return [
        inner
        for field in fields(settings)
        for inner in (flat_fields(hints[field.name]) if is_dataclass(hints[field.name]) else [field])
    ]


def options(settings: type) -> list[str]:
    named = []
    for field in flat_fields(settings):
        if "Positional" in str(field.type):
            named.append(field.name.upper().replace("_", "-"))
        else:
            named.append(f"--{field.name.replace('_', '-')}")
    return named


@pytest.mark.parametrize("name", ["prune", "demo"])
def test_commands_that_compute_take_device_dtype_and_seed(name: str) -> None:
    settings, _ = COMMANDS[name].load()
    assert {"device", "dtype", "seed"} <= {field.name for field in fields(settings)}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_unknown_option_of_a_command(run: Run, name: str) -> None:
    settings, _ = COMMANDS[name].load()
    positional = ["x"] * sum("Positional" in str(field.type) for field in flat_fields(settings))
    lacking = [
        f for f in flat_fields(settings) if f.default is f.default_factory is MISSING and "Pos" not in str(f.type)
    ]
    required = [word for field in lacking for word in (f"--{field.name}", "x")]
    error = run(name, *positional, *required, "--quite", "1").error
    assert f"'multiflow {name}' takes no option '--quite'" in error


def test_interrupt_is_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("multiflow.cli.shapes.shapes", stop)
    assert run("shapes", "x") == (130, "", "multiflow: interrupted\n")


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_clean_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = warnings.showwarning
    monkeypatch.setattr("multiflow.cli.shapes.shapes", lambda settings: warnings.warn("mind\n  the gap", stacklevel=1))
    assert run("shapes", "x") == (0, "", "multiflow: warning: mind the gap\n")
    assert warnings.showwarning is before


def test_a_bug_is_no_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("multiflow.cli.shapes.shapes", broken)
    with pytest.raises(ZeroDivisionError):
        run("shapes", "x")


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    done = processes.run("bash", "-c", f"{sys.executable} -m multiflow --help | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout == "0\n"
    assert done.stderr == ""


def test_the_installed_program_answers() -> None:
    program = os.path.join(os.path.dirname(sys.executable), "multiflow")
    done = processes.run(program, "prun")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "did you mean 'prune'" in done.stderr


def test_every_command_has_its_module() -> None:
    for name, command in cli.COMMANDS.items():
        settings, function = command.load()
        assert is_dataclass(settings)
        assert settings.__dataclass_params__.frozen
        assert function.__name__ == name.replace(" ", "_")
