"""The commands: name, one line of help, an example. A command's module is imported when it runs, not before.

The command ``NAME`` lives in ``multiflow/cli/NAME.py`` as the frozen dataclass ``NameSettings``, from which its options
are made, and the function ``NAME(settings)``, which returns its exit code (None = 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from multiflow.registry import Registry


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
        """Import the command; return the dataclass of its settings and its function."""
        module = import_module(f"multiflow.cli.{self.name}")
        return getattr(module, f"{self.name.capitalize()}Settings"), getattr(module, self.name)


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
        "show",
        "Show pruners, models, tasks; a model's layers; a mask or two; a run; a data set.",
        "multiflow show pruners\n"
        "multiflow show xvlm-shapes\n"
        "multiflow show runs/a/mask-0.75.safetensors runs/b/mask-0.75.safetensors",
    ),
    Command(
        "apply",
        "Write a pruned model as an ordinary Hugging Face folder.",
        "multiflow apply xvlm-shapes runs/a/mask-0.75.safetensors --out xvlm-shapes-75",
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
        "digits",
        "Write scikit-learn's handwritten digits as images, and train a small ViT on them.",
        "multiflow digits runs/digits\nmultiflow digits runs/digits --images-only",
    ),
):
    COMMANDS.add(_command.name, _command)
