"""Zero-shot classification: the class whose name, put into sentences, is closest to the image.

CLIP (arXiv 2103.00020): the class's vector is the mean of the unit vectors of its sentences, of length 1 again. The
sentences are made from templates; the class names are those of the data, with underscores as spaces. A model that has
classes of its own is asked for these, through its processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.files import MOST_TEXT, read_json, read_text
from multiflow.calibration import evaluating
from multiflow.data.items import TaskData
from multiflow.families.automatic.reading import Reader
from multiflow.families.automatic.tasks import image_features, refuse_unable
from multiflow.tasks.classification.task import TASK, class_figures, class_numbers
from multiflow.tasks.read import Progress, by_processor, in_images, on_device, text_vectors
from multiflow.tasks.task import Figures

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "a close-up photo of a {}.",
    "a good photo of a {}.",
    "a blurry photo of a {}.",
    "a drawing of a {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
)
FIRST = 5


def evaluate_zero_shot(
    model: Any,
    reader: Reader,
    data: TaskData,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    save: str | Path | None = None,
    templates: Sequence[str] | None = None,
    class_names: str | Path | Mapping[str, str] | None = None,
    **pixels: Any,
) -> Figures:
    """Classify every image; ``save`` gets ``classes.json``: ``[{"image", "class"}]``. See `Task.evaluate`.

    Args:
        model: a dual encoder, or a model of images with classes of its own.
        reader: how it reads.
        data: labelled images.
        batch_size: images or texts at once.
        progress: called with (images done, images in all).
        save: folder for what the model says.
        templates: sentences with ``{}`` for the class, or one file with a sentence a line; None = nine usual ones.
        class_names: class of the data -> what it is called in the sentences, as a mapping or a JSON file of one.
        pixels: nothing that a processor does not know itself.

    Returns:
        ``top-1``, ``top-5`` where there are more than five classes, and ``mean per class``; ``each`` is 100 for an
        image that is right and 0 for another.

    Raises:
        MultiflowError: a template without ``{}``, or a model that can do neither.
    """
    refuse_unable(model, "classification")
    scores, keys = [], []
    with torch.no_grad(), evaluating(model):
        if reader.manner == "images":
            numbers = class_numbers(model, data)
        else:
            numbers = {name: number for number, name in enumerate(data.choices)}
            called = class_words(data.choices, class_names)
            classes = class_vectors(model, reader, called, sentence_templates(templates), batch_size)
        for items, images in in_images(data, batch_size, progress):
            keys += [item.key for item in items]
            if reader.manner == "images":
                scores.append(model(**on_device(reader.images(images), model)).logits.float().cpu())
            else:
                scores.append(image_features(model, reader.images(images)).cpu() @ classes.T)
    logits, truth = torch.cat(scores), torch.tensor([numbers[name] for (name,) in data.texts])
    found = class_figures(logits, numbers, keys, data, save)
    figures = dict(found)
    if logits.shape[1] > FIRST:
        within = (logits.topk(FIRST).indices == truth[:, None]).any(1)
        figures[f"top-{FIRST}"] = 100 * within.double().mean().item()
    right = (logits.argmax(1) == truth).double()
    figures["mean per class"] = 100 * torch.stack([right[truth == n].mean() for n in truth.unique()]).mean().item()
    return Figures(figures, found.each, found.said)


def class_vectors(
    model: Any, reader: Reader, names: Sequence[str], templates: Sequence[str], batch_size: int
) -> Float[Tensor, "classes dim"]:
    """Return the unit vector of each class: the mean of those of its sentences, of length 1 again."""
    sentences = [template.format(name) for name in names for template in templates]
    vectors = text_vectors(model, reader, sentences, batch_size)
    return F.normalize(vectors.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


def sentence_templates(given: Sequence[str] | None) -> Sequence[str]:
    """Return templates: those that were given, the lines of a file, or the usual ones."""
    if not given:
        return TEMPLATES
    lines = list(given)
    if len(lines) == 1 and "{}" not in lines[0] and Path(lines[0]).is_file():
        text = read_text(Path(lines[0]), "a file with a template on every line", MOST_TEXT)
        lines = [line.strip() for line in text.split("\n") if line.strip()]
    for line in lines:
        if line.count("{}") != 1 or line.count("{") != 1:
            raise MultiflowError(
                f"template '{line}' has no single {{}} for the name of the class; write such as 'a photo of a {{}}.', "
                "or give a file with one on every line"
            )
    return lines


def class_words(classes: Sequence[str], given: str | Path | Mapping[str, str] | None) -> list[str]:
    """Return what the classes are called in sentences.

    >>> class_words(["african_elephant", "n01440764"], {"n01440764": "tench"})
    ['african elephant', 'tench']
    """
    names = read_json(Path(given)) if isinstance(given, str | Path) else given or {}
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
        raise MultiflowError(f'\'{given}\' is no mapping of classes to names; write such as {{"n01440764": "tench"}}')
    return [names.get(name, name.replace("_", " ")) for name in classes]


ZERO_SHOT = by_processor(TASK, evaluate_zero_shot, options=lambda data: {}, finish=lambda model, data: None)
