"""The command line: ``multiflow COMMAND ...``.

Results go to standard output; progress, warnings and errors to standard error. The exit code is 0 on success, 2 on bad
input (one sentence, no traceback) and 130 on Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from multiflow.base.errors import MultiflowError, unknown
from multiflow.cli.commands import COMMANDS, find_command
from multiflow.cli.console import one_line_warnings, print_help, say

BAD_INPUT = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    >>> main(["--version"])  # doctest: +SKIP
    multiflow 0.1.0
    0
    """
    with one_line_warnings():
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        except MultiflowError as error:
            say(f"error: {error}")
            return BAD_INPUT
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except BrokenPipeError:  # whoever reads the output, such as head, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print_help(COMMANDS.values())
        return 0
    if args[0] == "--version":
        from multiflow import __version__

        print(f"multiflow {__version__}")
        return 0
    if args[0].startswith("-"):
        raise unknown("option", args[0], ["--help", "--version"])
    command, rest = find_command(args)
    if command is None:
        print_help(one for one in COMMANDS.values() if one.name.split()[0] == rest[0])
        return 0
    from multiflow.cli.settings import option_of, parse

    settings_type, run = command.load()
    settings = parse(settings_type, command, rest)
    if settings is None:
        return 0
    from multiflow.base.guards import naming_shortages

    try:
        with naming_shortages(f"multiflow {command.name}"):
            return run(settings) or 0
    except MultiflowError as error:
        raise MultiflowError(error.worded(option_of(settings))) from error
