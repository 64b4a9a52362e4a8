"""What a task is, the figures that it is measured by, and the registry of all tasks.

A task is one folder ``multiflow/tasks/NAME``, whose ``__init__`` registers its record with ``TASKS.add``; a task from
outside does the same. `evaluate` and `finetune` know the tasks by these records alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.registry import Registry
from multiflow.families.family import Builder, Preset, find_builder, find_preset

Batch: TypeAlias = Mapping[str, Any]
Loss: TypeAlias = Callable[[nn.Module, Batch, int], tuple[Tensor, Mapping[str, Tensor | float]]]
"""``loss(model, batch, position)`` -> scalar to minimise and figures to log."""


@final
class Figures(dict[str, float]):
    """Figures in percent by name, and how much of the main one each test item brings in.

    It equals, prints and is written as its figures alone.

    Args:
        figures: name -> value.
        each: the main figure of each item, in the order of the items: their mean is the figure up to rounding. Two
            models can be compared item by item with it. Empty where the main figure was not computed.

    >>> Figures({"accuracy": 75.0}, [100, 50]).each
    (100.0, 50.0)
    """

    __slots__ = ("each",)

    def __init__(self, figures: Mapping[str, float], each: Iterable[float] = ()) -> None:
        super().__init__(figures)
        self.each: tuple[float, ...] = tuple(map(float, each))


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: by which it is called, such as ``vqa``.
        open: ``open(source, split, *, images=None, limit=None, skip_missing=False)`` -> the data, see
            `multiflow.data.items.TaskData`. Another layout, images that are missing and an image path that leaves its
            folder are errors.
        options: ``options(data)`` -> what `task_model` needs to know of the data, as keyword arguments.
        inputs: ``inputs(model, tokenizer, *, augment=False, seed=0, max_length=None, mean=..., std=...)`` -> how
            batches for this task model are made, see `multiflow.tasks.inputs.TaskInputs`.
        batch: ``batch(data, inputs, batch_size, position)`` -> the training batch at a position (from 0), a pure
            function of its arguments: the items in an order that the seed and the epoch decide, without end.
        loss: ``loss(model, batch, position)`` -> scalar to minimise and figures to log, as `train` takes it.
        evaluate: ``evaluate(model, tokenizer, data, *, batch_size=32, progress=None, save=None, **options)`` ->
            figures in percent, see `Figures`. The model is in evaluation mode meanwhile; ``tokenizer`` is its own, None
            for images alone; ``batch_size`` items are computed at once; ``progress`` is called with (items done, items
            in all); ``save`` is a folder for what the model says; further options are ``mean`` and ``std`` of the
            pixels, and those of the task.
        main: the figure that results are compared by; ``each`` of the figures is this one of each item, in the order
            of the data.
        best: the figure by which the best checkpoint is chosen, the higher the better.
        models: types of models that can be evaluated as they are, besides those whose family says so.
        builders: type of a pretrained model -> `Builder` of its task model, where the family has none for this task.
        presets: name -> hyper-parameters of fine-tuning, where the family has none for this task.
        epoch: ``epoch(data)`` -> how many samples are one epoch of training.
        finish: ``finish(model, data)`` writes into a task model that was built for these data what it has to keep of
            them, such as the names of their classes.
        check: ``check(data, val_data, **options)`` raises, before a run starts, where something is lacking for it: in
            the data to train on, in those to choose the best checkpoint by, or for an evaluation with these options.
    """

    name: str
    open: Callable[..., Any]
    options: Callable[[Any], dict[str, Any]]
    inputs: Callable[..., Any]
    batch: Callable[[Any, Any, int, int], dict[str, Any]]
    loss: Loss
    evaluate: Callable[..., Figures]
    main: str
    best: str
    models: tuple[str, ...] = ()
    builders: Mapping[str, Builder] = field(default_factory=dict)
    presets: Mapping[str, Preset] = field(default_factory=dict)
    epoch: Callable[[Any], int] = len
    finish: Callable[[Any, Any], None] = lambda model, data: None
    check: Callable[..., None] = lambda data, val_data, **options: None

    def builder(self, model: nn.Module) -> Builder:
        """Return what builds the task model of a pretrained one: the family's, or the task's own.

        Raises:
            MultiflowError: the model cannot do this task.
        """
        return find_builder(model, self.name, self.builders)

    def preset(self, name: str, model: nn.Module) -> Preset:
        """Return the hyper-parameters of a preset for a model: the task's own, or those of the model's family.

        Raises:
            MultiflowError: there is no such preset, or it has nothing for such models.
        """
        return self.presets.get(name) or find_preset(name, model, self.name)

    def score(self, figures: Mapping[str, float]) -> float:
        """Return the figure that `best` names; of captions, where Java is missing, its substitute ``CIDEr (words)``.

        Raises:
            MultiflowError: the figures lack it.
        """
        return figures[self._named(self.best, figures, "to choose by")]

    def main_of(self, figures: Mapping[str, float]) -> str:
        """Return the name under which the figures hold the `main` one: itself, or ``CIDEr (words)`` as in `score`.

        Raises:
            MultiflowError: the figures lack it.

        >>> TASKS["captioning"].main_of({"BLEU-4 (words)": 30.1, "CIDEr (words)": 98.2})
        'CIDEr (words)'
        """
        return self._named(self.main, figures, "to compare by")

    def _named(self, wanted: str, figures: Mapping[str, float], purpose: str) -> str:
        for name in (wanted, f"{wanted} (words)"):
            if name in figures:
                return name
        raise MultiflowError(
            f"task '{self.name}' has no figure '{wanted}' {purpose}, only {', '.join(figures) or 'none'}; "
            "give data with the right answers"
        )


TASKS: Registry[Task] = Registry("task", "multiflow.tasks", folders=True, order=lambda name, task: name)
"""Every task by its name.

>>> list(TASKS)
['captioning', 'classification', 'retrieval', 'vqa']
"""


def model_loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Return the loss that a model computes of a batch, and no figures: a `Loss`."""
    return model(**batch).loss, {}
