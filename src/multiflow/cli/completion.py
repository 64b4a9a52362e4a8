"""``multiflow completion``: a script with which a shell completes commands, options and what they take.

It knows what the commands print with ``--help``, and the names in the registries, as they are when it is written.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Annotated
from unittest.mock import patch

from tyro.conf import Positional, arg

from multiflow.base.errors import unknown
from multiflow.cli import COMMANDS
from multiflow.cli.settings import parse
from multiflow.families.opening import bundled_models
from multiflow.methods import PRUNERS
from multiflow.methods.budgets import ALLOCATIONS
from multiflow.tasks.task import TASKS

ROW = re.compile(r"^\W*(?:-h, )?(--[a-z][\w-]*)(?:, --no-[\w-]+)?(?: ([A-Z\[{|][^ ]*))?", re.M)
"""A row of the help: an option, and what it takes."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
TAKES: Mapping[str, Callable[[], Sequence[str]]] = {
    "--method": lambda: list(PRUNERS),
    "--methods": lambda: list(PRUNERS),
    "--allocation": lambda: list(ALLOCATIONS),
    "--pattern": lambda: ("unstructured", "per-row", "2:4"),
    "--device": lambda: ("auto", "cpu", "cuda"),
    "--dtype": lambda: ("auto", "float32", "bfloat16", "float16"),
    "--tokens": lambda: ("all", "text", "image"),
}
"""Option -> the words it takes; all others take a file or a word of the user's own."""
MODELS = ("prune", "recover", "compare", "apply", "export", "shrink", "speed")
OF_TASKS = ("evaluate", "finetune")


@dataclass(frozen=True)
class CompletionSettings:
    """For which shell to write the script; it goes to standard output.

    Args:
        shell: bash, zsh or fish
    """

    shell: Annotated[Positional[str], arg(metavar="SHELL")]


def completion(settings: CompletionSettings) -> None:
    """Print the script.

    Raises:
        MultiflowError: a shell of no known name.
    """
    if settings.shell not in SHELLS:
        raise unknown("shell", settings.shell, list(SHELLS))
    print(SHELLS[settings.shell](known_words()))


@dataclass(frozen=True)
class Words:
    """What can follow a command."""

    summary: str
    options: Mapping[str, bool]  # option -> whether it takes a value
    arguments: Sequence[str]  # words that the first arguments may be


def known_words() -> dict[str, Words]:
    """Return command -> what can follow it."""
    models = list(bundled_models())
    first = {
        **dict.fromkeys(MODELS, models),
        **{name: [*TASKS, *models] for name in OF_TASKS},
        "show": ["pruners", "models", "tasks", "layouts", "data", *models],
        "completion": list(SHELLS),
    }
    found = {}
    for command in COMMANDS.values():
        settings, _ = command.load()
        said = io.StringIO()
        with redirect_stdout(said), patch.dict(os.environ, {"COLUMNS": "100"}):
            parse(settings, command, ["--help"])
        options = {name: bool(takes) for name, takes in ROW.findall(COLOURS.sub("", said.getvalue()))}
        found[command.name] = Words(command.summary, options, first.get(command.name, ()))
    return found


def bash(known: Mapping[str, Words]) -> str:
    """Write the script for bash."""
    first = " ".join([*dict.fromkeys(name.split()[0] for name in known), "--help", "--version"])
    values = [f'    {name}) found="{" ".join(of())}";;' for name, of in TAKES.items()]
    options = [
        f'    "{name}") options="{" ".join(of.options)}"; arguments="{" ".join(of.arguments)}";;'
        for name, of in known.items()
    ]
    groups = [f'    {name}) found="{" ".join(of)}";;' for name, of in groups_of(known).items()]
    return "\n".join([
        "# bash completion of multiflow",
        "_multiflow() {",
        '  local now="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
        '  local command="${COMP_WORDS[1]}" options="" arguments="" found=""',
        "  COMPREPLY=()",
        "  if [ $COMP_CWORD -eq 1 ]; then",
        f'    COMPREPLY=( $(compgen -W "{first}" -- "$now") ); return',
        "  fi",
        '  case "$command" in',
        *groups,
        "  esac",
        '  if [ -n "$found" ]; then',
        '    if [ $COMP_CWORD -eq 2 ]; then COMPREPLY=( $(compgen -W "$found" -- "$now") ); return; fi',
        '    command="$command ${COMP_WORDS[2]}"; found=""',
        "  fi",
        '  case "$before" in',
        *values,
        "  esac",
        '  if [ -n "$found" ]; then COMPREPLY=( $(compgen -W "$found" -- "$now") ); return; fi',
        '  case "$command" in',
        *options,
        "  esac",
        '  case "$now" in',
        '    -*) COMPREPLY=( $(compgen -W "$options" -- "$now") );;',
        '    *) COMPREPLY=( $(compgen -W "$arguments" -- "$now") $(compgen -f -- "$now") );;',
        "  esac",
        "}",
        "complete -o filenames -F _multiflow multiflow",
    ])  # fmt: skip


def zsh(known: Mapping[str, Words]) -> str:
    """Write the script for zsh, which may be sourced, or lie as ``_multiflow`` in a folder of ``fpath``."""
    alone = {name: of.summary for name, of in known.items() if " " not in name}
    first = {**alone, **{name: f"{name} {' | '.join(of)}" for name, of in groups_of(known).items()}}
    described = [f"      {shlex.quote(f'{name}:{text}')}" for name, text in first.items()]
    values = [f"    {name}) compadd -- {' '.join(of())}; return;;" for name, of in TAKES.items()]
    options = [
        f"    {shlex.quote(name)}) options=({' '.join(of.options)}); arguments=({' '.join(of.arguments)});;"
        for name, of in known.items()
    ]
    groups = [
        f"    {name}) if (( CURRENT == 3 )); then compadd -- {' '.join(of)}; return; fi\n"
        f'      command="{name} $words[3]";;'
        for name, of in groups_of(known).items()
    ]
    return "\n".join([
        "#compdef multiflow",
        "_multiflow() {",
        '  local command="$words[2]"',
        "  local -a options arguments commands",
        "  if (( CURRENT == 2 )); then",
        "    commands=(",
        *described,
        "    )",
        "    _describe command commands; return",
        "  fi",
        '  case "$command" in',
        *groups,
        "  esac",
        '  case "$words[CURRENT-1]" in',
        *values,
        "  esac",
        '  case "$command" in',
        *options,
        "  esac",
        '  if [[ "$PREFIX" == -* ]]; then compadd -- $options; else compadd -- $arguments; _files; fi',
        "}",
        'if [ "$funcstack[1]" = "_multiflow" ]; then _multiflow "$@"; else compdef _multiflow multiflow; fi',
    ])  # fmt: skip


def fish(known: Mapping[str, Words]) -> str:
    """Write the script for fish."""
    lines = ["# fish completion of multiflow"]
    groups = groups_of(known)

    def offer(when: str, word: str, summary: str) -> None:
        lines.append(f"complete -c multiflow -n {shlex.quote(when)} -f -a {word} -d {shlex.quote(summary)}")

    for name, of in groups.items():
        offer("__fish_use_subcommand", name, " | ".join(of))
    for name, words in known.items():
        first, *second = name.split()
        seen = f"__fish_seen_subcommand_from {first}"
        if second:
            offer(f"{seen}; and not __fish_seen_subcommand_from {' '.join(groups[first])}", second[0], words.summary)
            seen = f"{seen}; and __fish_seen_subcommand_from {second[0]}"
        else:
            offer("__fish_use_subcommand", first, words.summary)
        when = f"complete -c multiflow -n {shlex.quote(seen)}"
        if words.arguments:
            lines.append(f"{when} -a {shlex.quote(' '.join(words.arguments))}")
        for option, takes in words.options.items():
            own = f" -x -a {shlex.quote(' '.join(TAKES[option]()))}" if option in TAKES else " -r" * takes
            lines.append(f"{when} -l {option.removeprefix('--')}{own}")
    return "\n".join(lines)


def groups_of(known: Mapping[str, Words]) -> dict[str, list[str]]:
    """Return first word -> second words, of commands of two words."""
    found: dict[str, list[str]] = {}
    for first, _, second in (name.partition(" ") for name in known):
        if second:
            found.setdefault(first, []).append(second)
    return found


SHELLS: dict[str, Callable[[Mapping[str, Words]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
"""Name of a shell -> what writes its script."""
