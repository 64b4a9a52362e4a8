"""What a task is, the figures that it is measured by, and the registry of all tasks.

A task is one folder ``multiflow/tasks/NAME``, whose ``__init__`` registers its record with ``TASKS.add``; a task from
outside does the same. `evaluate` and `finetune` know the tasks by these records alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.registry import Registry
from multiflow.families.family import Builder, Preset, find_builder, find_preset, reads_by_processor

Batch: TypeAlias = Mapping[str, Any]
Loss: TypeAlias = Callable[[nn.Module, Batch, int], tuple[Tensor, Mapping[str, Tensor | float]]]
"""``loss(model, batch, position)`` -> scalar to minimise and figures to log."""


@final
class Figures(dict[str, float]):
    """Figures in percent by name, how much of the main one each test item brings in, and what was said of it.

    It equals, prints and is written as its figures alone.

    Args:
        figures: name -> value.
        each: the main figure of each item, in the order of the items: their mean is the figure up to rounding. Two
            models can be compared item by item with it. Empty where the main figure was not computed.
        said: what the model said of each item, as a text: `loyalty` compares it with what another model said.

    >>> Figures({"accuracy": 75.0}, [100, 50]).each
    (100.0, 50.0)
    """

    __slots__ = ("each", "said")

    def __init__(self, figures: Mapping[str, float], each: Iterable[float] = (), said: Iterable[str] = ()) -> None:
        super().__init__(figures)
        self.each: tuple[float, ...] = tuple(map(float, each))
        self.said: tuple[str, ...] = tuple(said)


def loyalty(said: Sequence[str], by_the_dense: Sequence[str]) -> float:
    """Return the share of the items, in percent, of which a pruned model says what the dense one said.

    Needs no right answers. Texts are compared as they are, but for spaces around them.

    Args:
        said: what the pruned model said of each item.
        by_the_dense: what the dense model said of the same items, in the same order.

    Raises:
        MultiflowError: there are no items, or not as many of one as of the other.

    >>> loyalty(["a dog", "two", "red"], ["a dog", "three", "red "])
    66.66666666666667
    """
    if not said or len(said) != len(by_the_dense):
        raise MultiflowError(
            f"{len(said)} answers and {len(by_the_dense)} of the dense model were given; expected one of each an item"
        )
    same = sum(one.strip() == other.strip() for one, other in zip(said, by_the_dense, strict=True))
    return 100 * same / len(said)


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: by which it is called, such as ``vqa``.
        open: ``open(source, split, *, images=None, limit=None, skip_missing=False, **columns)`` -> the data, see
            `multiflow.data.items.TaskData`; the columns are those of `open_data`, given where the user names them.
            Another layout, images that are missing and an image path that leaves its folder are errors.
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
        by_processor: the same task for models of transformers that are read through their own processor: what is called
            ``tokenizer`` is a `Reader` there.
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
    by_processor: Task | None = None

    def of(self, model: nn.Module) -> Task:
        """Return the task as a model does it: read through its own processor, or as a family of ours."""
        return self.called(reads_by_processor(model), type(model).__name__)

    def called(self, by_processor: bool, model: str) -> Task:
        """Return this task, or the same for models that are read through their processor; see `of`."""
        if not by_processor:
            return self
        if self.by_processor is None:
            raise MultiflowError(f"task '{self.name}' is not for models of transformers such as '{model}'")
        return self.by_processor

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
['captioning', 'classification', 'retrieval', 'transcription', 'vqa']
"""


def model_loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Return the loss that a model computes of a batch, and no figures: a `Loss`."""
    return model(**batch).loss, {}
