"""The command line: ``multiflow COMMAND ...``.

Results go to standard output; progress, warnings and errors to standard error. The exit code is 0 on success, 2 on bad
input (one sentence, no traceback) and 130 on Ctrl-C.

The command ``NAME`` lives in ``multiflow/cli/NAME.py``, imported when it runs: as the frozen dataclass
``NameSettings``, from which its options are made, and the function ``NAME(settings)``, which returns its exit code
(None = 0). Of a name of two words the first is the file: ``bench run`` is ``BenchRunSettings`` and ``bench_run`` in
``multiflow/cli/bench.py``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.registry import Registry
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


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: how it is called.
        summary: one line for lists.
        example: how it is used, one command a line.
    """

    name: str
    summary: str
    example: str

    def load(self) -> tuple[type, Callable[[Any], int | None]]:
        words = self.name.split()
        module = import_module(f"multiflow.cli.{words[0]}")
        return getattr(module, f"{''.join(map(str.capitalize, words))}Settings"), getattr(module, "_".join(words))


COMMANDS: Registry[Command] = Registry("command")
"""Every command by its name, in the order of the help."""

for _command in (
    Command(
        "demo",
        "Prune the bundled model in several ways, measure what survives, write a report.",
        "multiflow demo",
    ),
    Command(
        "prune",
        "Prune a model: masks at one or several sparsities from one calibration pass.",
        "multiflow prune xvlm-shapes --data shapes/pretrain\n"
        "multiflow prune xvlm.th --family xvlm --data cc3m --method wanda --sparsity 0.63 0.75 --out runs/wanda",
    ),
    Command(
        "recover",
        "Train what a pruned model keeps, on calibration data alone, until it does what the dense one did.",
        "multiflow recover xvlm-shapes --mask runs/a/mask-0.9.safetensors\n"
        "multiflow recover xvlm.th --family xvlm --mask runs/a/mask-0.9.safetensors --data cc3m --then distill "
        "--out runs/recovered",
    ),
    Command(
        "show",
        "Show pruners, models, tasks, layouts of data; a model's layers; a mask or two; a run; a data set.",
        "multiflow show pruners\n"
        "multiflow show xvlm-shapes\n"
        "multiflow show runs/a/mask-0.75.safetensors runs/b/mask-0.75.safetensors",
    ),
    Command(
        "compare",
        "Compare pruners on your own model and data: masks, errors of blocks, answers that stay, seconds, memory.",
        "multiflow compare xvlm-shapes --methods magnitude wanda multiflow --sparsity 0.5 0.75\n"
        "multiflow compare llava/ --data photos.csv --methods wanda sparsegpt --out runs/compare",
    ),
    Command(
        "apply",
        "Write a pruned model as an ordinary Hugging Face folder.",
        "multiflow apply xvlm-shapes runs/a/mask-0.75.safetensors --out xvlm-shapes-75",
    ),
    Command(
        "export",
        "Write a sparse model as a packed folder: a bit a weight and the values of those that are kept.",
        "multiflow export xvlm-shapes --mask runs/a/mask-0.75.safetensors --out xvlm-shapes-75-packed",
    ),
    Command(
        "shrink",
        "Remove whole neurons and attention heads: an ordinary smaller model, faster anywhere.",
        "multiflow shrink xvlm-shapes --share 0.5 --out runs/half\n"
        "multiflow shrink vit-base --method magnitude --units all --share 0.25 --out runs/vit",
    ),
    Command(
        "speed",
        "Measure how fast and how large a model is on this machine, dense and in every form that its zeros allow.",
        "multiflow speed xvlm-shapes --mask runs/a/mask-0.75.safetensors\n"
        "multiflow speed xvlm-shapes-75-packed --samples 1 8 --out runs/speed",
    ),
    Command(
        "shapes",
        "Write Shapes, a synthetic image-text world, in the formats of the real data sets.",
        "multiflow shapes data/shapes --train 2000",
    ),
    Command(
        "pretrain",
        "Train a small X-VLM or BLIP on Shapes from scratch.",
        "multiflow pretrain runs/xvlm-shapes\nmultiflow pretrain runs/blip-shapes --family blip --resume",
    ),
    Command(
        "evaluate",
        "Evaluate a model on retrieval, captioning, question answering or classification.",
        "multiflow evaluate retrieval blip-shapes --data data/shapes/coco\n"
        "multiflow evaluate vqa runs/vqa/model --data vqa --split val --save runs/vqa/evaluation",
    ),
    Command(
        "finetune",
        "Train a model for a task with its mask, whose zeros stay zero; without a mask, the dense baseline.",
        "multiflow finetune retrieval xvlm-shapes --mask runs/a/mask-0.75.safetensors --data shapes/coco "
        "--preset shapes --out runs/retrieval",
    ),
    Command(
        "bench run",
        "Compute a grid of models, pruners, sparsities, tasks and seeds; what is done already is skipped.",
        "multiflow bench run benchmarks/shapes.yaml --tier 1 --out runs/shapes\n"
        "multiflow bench run benchmarks/shapes.yaml --out runs/shapes --engine local --workers 2",
    ),
    Command(
        "bench report",
        "Write tables, curves and a page of what a grid has found.",
        "multiflow bench report runs/shapes",
    ),
    Command(
        "doctor",
        "Say what is installed, what is missing for which feature, and where files are kept.",
        "multiflow doctor",
    ),
    Command(
        "completion",
        "Write the script with which bash, zsh or fish completes commands and options.",
        "multiflow completion bash > ~/.local/share/bash-completion/completions/multiflow\n"
        "multiflow completion zsh > ~/.zfunc/_multiflow\n"
        "multiflow completion fish > ~/.config/fish/completions/multiflow.fish",
    ),
    Command(
        "digits",
        "Write scikit-learn's handwritten digits as images, and train a small ViT on them.",
        "multiflow digits runs/digits\nmultiflow digits runs/digits --images-only",
    ),
):
    COMMANDS.add(_command.name, _command)


def find_command(words: Sequence[str]) -> tuple[Command | None, Sequence[str]]:
    """Return the command that words begin with, and the words after it; None where the first word needs a second.

    Raises:
        MultiflowError: there is no such command.
    """
    family = [name for name in COMMANDS if name.split()[0] == words[0] and " " in name]
    if not family:
        return COMMANDS[words[0]], words[1:]
    if len(words) < 2 or words[1] in ("-h", "--help", "help"):
        return None, words[:1]
    name = " ".join(words[:2])
    if name not in COMMANDS:
        raise unknown("command", name, family)
    return COMMANDS[name], words[2:]
