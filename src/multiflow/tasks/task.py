"""What a task is, and the table of all tasks: `evaluate` and `finetune` know them by these records alone.

The task ``NAME`` is the record ``TASK`` in ``multiflow/tasks/NAME/task.py``, which is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from multiflow.base.errors import MultiflowError, unknown
from multiflow.data.feed import Batch
from multiflow.families.task_models import TASKS as NAMES
from multiflow.tasks.figures import Figures


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: ``retrieval``, ``captioning``, ``vqa`` or ``classification``.
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
            figures in percent, see `multiflow.metrics.Figures`. ``progress`` is called with (items done, items in all);
            ``save`` is a folder for what the model says.
        main: the figure that results are compared by; ``each`` of the figures is this one of each item, in the order
            of the data.
        best: the figure by which the best checkpoint is chosen, the higher the better.
        models: types of models that can be evaluated as they are.
        untrained: types of pretrained models whose task model needs no training to be evaluated.
        epoch: ``epoch(data)`` -> how many samples are one epoch of training.
        check: ``check(data, val_data, **options)`` raises, before a run starts, where something is lacking for it: in
            the data to train on, in those to choose the best checkpoint by, or for an evaluation with these options.
    """

    name: str
    open: Callable[..., Any]
    options: Callable[[Any], dict[str, Any]]
    inputs: Callable[..., Any]
    batch: Callable[[Any, Any, int, int], dict[str, Any]]
    loss: Callable[[nn.Module, Batch, int], tuple[Tensor, Mapping[str, Tensor | float]]]
    evaluate: Callable[..., Figures]
    main: str
    best: str
    models: tuple[str, ...]
    untrained: tuple[str, ...] = ()
    epoch: Callable[[Any], int] = len
    check: Callable[..., None] = lambda data, val_data, **options: None

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


class _Tasks(Mapping[str, Task]):
    """The tasks by name; each module is imported at its first use."""

    def __getitem__(self, name: str) -> Task:
        if name not in NAMES:
            raise unknown("task", str(name), NAMES)
        return import_module(f"multiflow.tasks.{name}.task").TASK

    def __contains__(self, name: object) -> bool:
        return name in NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


TASKS: Mapping[str, Task] = _Tasks()
"""Every task by its name.

>>> list(TASKS)
['retrieval', 'captioning', 'vqa', 'classification']
"""
