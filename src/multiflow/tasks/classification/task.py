"""Classification: which class an image shows, by top-1 accuracy.

Trained with cross-entropy on a new head, as DINO is fine-tuned for CIFAR-10, CIFAR-100 and Flowers-102.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.calibration import evaluating
from multiflow.data import Dataset, Skip
from multiflow.data.items import TaskData, refuse_broken
from multiflow.data.source import open_labelled
from multiflow.tasks.inputs import (
    TaskInputs,
    in_batches,
    make_samples,
    samples_at,
    to_tensor,
    training_picture,
)
from multiflow.tasks.task import Batch, Figures, Task

RESULTS = "classes.json"


def open_classes(
    source: str | Path,
    split: str | None,
    *,
    images: str | Path | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    **columns: str | None,
) -> TaskData:
    """Open labelled images, see `multiflow.data.source.open_labelled`; the limit takes them evenly from all.

    Raises:
        MultiflowError: another layout or split, images that are missing, or ``images`` was given.
    """
    if images is not None:
        raise MultiflowError(f"images '{images}' was given, but labelled images lie in the data folder; leave it out")
    for name, column in columns.items():
        if column is not None:
            raise MultiflowError(f"{{{name}={column}}} was given, but labelled images have no columns", field=name)
    if limit is not None and limit < 1:
        raise MultiflowError(f"limit {limit} was given; expected at least 1")
    data = open_labelled(source, split)
    count = len(data) if limit is None else min(limit, len(data))
    chosen = [i * len(data) // count for i in range(count)]  # images lie class by class
    missing = missing_files(data, chosen)
    refuse_broken(list(missing.values()), count - len(missing), data.source, allowed=skip_missing)
    kept = [i for i in chosen if i not in missing]
    texts = tuple(known.texts for i in kept if (known := data.known(i)))
    source, skipped = f"{data.source} ({data.layout})", tuple(missing.values())
    return TaskData(source, kept, data.read, texts, data.classes, skipped, data.known)


def missing_files(data: Dataset[Any], chosen: list[int]) -> dict[int, Skip]:
    paths = {i: known.path for i in chosen if (known := data.known(i)) and known.path is not None}
    return {i: Skip(os.path.basename(path), "no such file") for i, path in paths.items() if not os.path.exists(path)}


def image_inputs(model: Any, tokenizer: Any = None, **options: Any) -> TaskInputs:
    options.pop("max_length", None)
    return TaskInputs(model.config.image_size, **options)


def image_batch(data: TaskData, inputs: TaskInputs, batch_size: int, position: int) -> dict[str, Any]:

    def make(number: int, index: int) -> tuple[Any, int]:
        return training_picture(data[index], (), inputs, number), data.choices.index(data.texts[index][0])

    made = make_samples(make, samples_at(len(data), inputs, batch_size, position))
    pixels = to_tensor([picture for picture, _ in made], inputs)
    return {"pixel_values": pixels, "labels": torch.tensor([label for _, label in made])}


def image_loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    logits = model(pixel_values=batch["pixel_values"]).logits
    right = (logits.argmax(1) == batch["labels"]).float().mean()
    return F.cross_entropy(logits.float(), batch["labels"]), {"right": right}


@torch.no_grad()
def evaluate_classification(
    model: Any,
    tokenizer: Any,
    data: TaskData,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    save: str | Path | None = None,
    **how: Any,
) -> Figures:
    """Classify every image; ``save`` gets ``classes.json``: ``[{"image", "class"}]``. See `Task.evaluate`.

    Where the model knows the classes of the data by name, these names decide; else their order.

    Returns:
        ``top-1``; ``each`` is 100 for an image that is right and 0 for another, in the order of the data.

    Raises:
        MultiflowError: the model has another number of classes.
    """
    inputs = image_inputs(model, **how)
    numbers = class_numbers(model, data)
    logits, keys = [], []
    with evaluating(model):
        for items, pixels in in_batches(model, data, inputs, batch_size, progress):
            logits.append(model(pixel_values=pixels).logits.float().cpu())
            keys += [item.key for item in items]
    return class_figures(torch.cat(logits), numbers, keys, data, save)


def class_figures(
    logits: Float[Tensor, "images classes"],
    numbers: Mapping[str, int],
    keys: Sequence[str],
    data: TaskData,
    save: str | Path | None,
) -> Figures:
    """Return the top-1 accuracy of a model, and write the class that it gives each image where a folder is given.

    Args:
        logits: of the images of the data, in order.
        numbers: class -> its number in the logits.
        keys: names of the images.
        data: labelled images.
        save: the folder.
    """
    names, best = {number: name for name, number in numbers.items()}, logits.argmax(1)
    said = [names.get(at, str(at)) for at in best.tolist()]  # a class that the data do not have, by its number
    if save is not None:
        found = [{"image": key, "class": name} for key, name in zip(keys, said, strict=True)]
        write_atomically(Path(save) / RESULTS, json.dumps(found, indent=1) + "\n")
    truth = torch.tensor([numbers[name] for (name,) in data.texts])
    return Figures({"top-1": top1(logits, truth)}, (100 * (best == truth)).tolist(), said)


def top1(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """Return the share of the images, in percent, whose highest logit (the first of equals) is that of their class.

    Raises:
        MultiflowError: there are no images, or the shapes do not fit.

    >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    50.0
    """
    if logits.ndim != 2 or not len(logits) or labels.shape != logits.shape[:1]:
        raise MultiflowError(
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} were given; "
            "expected (images, classes) and (images,)"
        )
    return 100 * int((logits.argmax(1) == labels).sum()) / len(labels)


def class_numbers(model: Any, data: TaskData) -> dict[str, int]:
    """Return the model's number of each class: by name where it knows them all, else in order."""
    known = getattr(model.config, "label2id", None) or {}
    if all(name in known for name in data.choices):
        return {name: int(known[name]) for name in data.choices}
    if model.config.num_labels != len(data.choices):
        raise MultiflowError(
            f"the model knows {model.config.num_labels} classes and {data.source} has {len(data.choices)}; "
            "give the data that it was fine-tuned on, with a folder 'train' that holds all classes"
        )
    return {name: number for number, name in enumerate(data.choices)}


def name_classes(model: Any, data: TaskData) -> None:
    model.config.id2label = dict(enumerate(data.choices))
    model.config.label2id = {name: number for number, name in enumerate(data.choices)}


TASK = Task(
    name="classification",
    open=open_classes,
    options=lambda data: {"classes": len(data.choices)},
    inputs=image_inputs,
    batch=image_batch,
    loss=image_loss,
    evaluate=evaluate_classification,
    main="top-1",
    best="top-1",
    finish=name_classes,
)
