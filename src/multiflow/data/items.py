"""The data of a task: items by number, their texts without opening an image, and a check before a run starts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.base.files import exists, read_json
from multiflow.data.dataset import BrokenItem, Dataset, Kind, Known, Question, Skip, nothing_known
from multiflow.data.images import WrongLayout, texts_of
from multiflow.data.source import open_data

WHAT = {
    "pairs": "images with captions",
    "questions": "questions about images",
    "regions": "described regions",
    "clips": "speech with transcripts",
}
EXAMPLES = {
    "pairs": 'dataset_coco.json: {"images": [{"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a dog"}]}]}',
    "clips": "metadata.csv with the columns file_name and transcription beside WAV or FLAC files",
    "questions": '[{"image": "a.jpg", "question": "what is it?", "answer": ["dog", "cat"]}], or the files of VQA v2',
}
SHOWN = 5
MOST_ANSWERS = 3128  # as many as the published list of candidates has


@dataclass(frozen=True)
class TaskData:
    """The data of a task: ``len(data)``, ``data[i]``."""

    source: str  # where they are from, in words
    items: Sequence[int]  # number of each item in what was opened
    # number of an item there -> the item, whose image Pillow decodes when its pixels are needed
    read: Callable[[int], Any]
    texts: tuple[tuple[str, ...], ...]  # captions of each image, answers to each question, or the class of each image
    choices: tuple[str, ...] = ()  # what the model chooses from: the answers of a list, the classes
    skipped: tuple[Skip, ...] = ()  # what was left out, and why
    # number of an item in what was opened -> what is known of it before it is read, as of `Dataset`
    known: Callable[[int], Known | None] = nothing_known

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.read(self.items[index])

    def __iter__(self) -> Iterator[Any]:
        return map(self.read, self.items)

    def __str__(self) -> str:
        return f"{len(self)} items from {self.source}"

    @property
    def unlisted(self) -> str:
        """Say how many of the texts are no choice; empty where all are, or where nothing is chosen from."""
        listed, texts = frozenset(self.choices), [text for several in self.texts for text in several]
        outside = [text for text in texts if text not in listed] if listed else []
        if not outside:
            return ""
        share = f"{len(outside)} of {len(texts)} answers in {self.source} ({len(outside) / len(texts):.1%})"
        return f"{share}, such as '{min(outside)}', are not among the {len(listed)} to choose from"

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(several) for several in self.texts])

    @property
    def pairs(self) -> int:
        return int(self._ends[-1])

    def pair(self, number: int) -> tuple[int, str]:
        item = int(np.searchsorted(self._ends, number, "right"))
        return item, self.texts[item][number - int(self._ends[item])]


class KnownItem(NamedTuple):
    """What is known of an item without its image; of what cannot be used, the reason."""

    path: str | None
    texts: tuple[str, ...]
    broken: Skip | None = None


def open_items(
    task: str,
    kind: Kind,
    source: str | Path,
    split: str | None,
    *,
    images: str | Path | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    **columns: str | None,
) -> TaskData:
    """Open a split of a data set for a task, and check that its images are there.

    Args:
        task: name of the task, for errors.
        kind: which kind of items it takes.
        source: see `open_data`.
        split: ``train``, ``val``, ``test``, ...; ``all`` or None takes data without splits whole.
        images: folder of the images that the data name.
        limit: items at most, the first ones.
        skip_missing: leave out what is missing or has no text, instead of refusing it.
        columns: ``image_column`` and ``text_column``, as of `open_data`.

    Raises:
        MultiflowError: the data are of another kind or layout, lack the split, or lack images.
    """
    data = open_kind(task, kind, source, split, images, **columns)
    return take_items(data, limit=limit, skip_missing=skip_missing)


def open_kind(
    task: str,
    kind: Kind,
    source: str | Path,
    split: str | None,
    images: str | Path | None = None,
    **columns: str | None,
) -> Dataset[Any]:
    """Open a split of a data set that holds what a task takes; see `open_items`."""
    try:
        data = open_data(source, images=images, split=split, **columns)
    except WrongLayout as error:
        raise WrongLayout(f"{error}; an example: {EXAMPLES[kind]}") from error
    if not isinstance(data, Dataset) or data.kind != kind:
        raise MultiflowError(
            f"task '{task}' takes {WHAT[kind]}, and '{source}' holds {data}; give a source such as {EXAMPLES[kind]}"
        )
    return data


def take_items(data: Dataset[Any], *, limit: int | None = None, skip_missing: bool = False) -> TaskData:
    """Check that the images of a data set are there, and take its items for a task; see `open_items`."""
    if limit is not None and limit < 1:
        raise MultiflowError(f"limit {limit} was given; expected at least 1")
    entries = entries_of(data)[:limit]
    usable = {number: entry for number, entry in enumerate(entries) if entry.broken is None}
    skipped = tuple(entry.broken for entry in entries if entry.broken is not None)
    skipped += data.skipped if limit is None else ()
    refuse_broken(skipped, len(usable), data.source, allowed=skip_missing)
    texts = tuple(entry.texts for entry in usable.values())
    return TaskData(f"{data.source} ({data.layout})", tuple(usable), data.read, texts, skipped=skipped)


def refuse_broken(skipped: Sequence[Skip], usable: int, source: str, *, allowed: bool) -> None:
    """Raise an error that counts what cannot be used and names the first five, unless it may be left out."""
    if not skipped or (allowed and usable):
        return
    listed = ", ".join(f"{skip.key} ({skip.reason})" for skip in skipped[:SHOWN])
    more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    fix = ", or leave these out with {skip_missing=True}" if usable else ""
    raise MultiflowError(
        f"{len(skipped)} of {len(skipped) + usable} items of '{source}' cannot be used: {listed}{more}; mend them, or "
        f"give the folder of the images with {{images=DIR}}{fix}",
        field=["images", "skip_missing"],
    )


def entries_of(data: Dataset[Any]) -> list[KnownItem]:
    """Return what is known of every item: its texts, and whether its image is there.

    Data sets of files know both without opening an image; of others, such as shards, every item is read once.
    """
    known = map(data.known, range(len(data)))
    return _checked([_read_entry(data.read, i) if of is None else KnownItem(*of) for i, of in enumerate(known)])


def missing_images(data: Dataset[Any]) -> list[Skip]:
    """Return which image files are not there; images that are not files of their own do not count."""
    known = [KnownItem(*of) for of in map(data.known, range(len(data))) if of is not None]
    return list(dict.fromkeys(entry.broken for entry in _checked(known) if entry.broken is not None))


def _checked(entries: Sequence[KnownItem]) -> list[KnownItem]:
    """Note of every entry whether its file is there."""
    is_there = cache(exists)
    return [
        entry
        if entry.path is None or is_there(entry.path)
        else entry._replace(broken=Skip(os.path.basename(entry.path), "no such file"))
        for entry in entries
    ]


def _read_entry(read: Callable[[int], Any], index: int) -> KnownItem:
    try:
        item = read(index)
    except BrokenItem as error:
        return KnownItem(None, (), error.skip)
    return KnownItem(None, item.captions if hasattr(item, "captions") else item.answers)


def answer_weights(answers: Sequence[str]) -> dict[str, float]:
    """Return each answer with the share of people who gave it.

    >>> answer_weights(["yes", "yes", "no", "yes"])
    {'yes': 0.75, 'no': 0.25}
    """
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


def answer_list(data: Dataset[Question], path: str | Path | None = None, most: int = MOST_ANSWERS) -> list[str]:
    """Return the candidates that a model ranks to answer a question.

    Args:
        data: training questions with their answers.
        path: ``answer_list.json``; None = the one beside the questions or, where there is none, the answers in `data`.
        most: answers taken from `data`: those given most often, counted in shares of a question.

    Errors: MultiflowError if there are no answers, or the file holds no list of texts, or an empty one.
    """
    beside = [Path(source) for source in data.source.split(" + ")] if path is None else []
    files = [Path(path)] if path is not None else [place.with_name("answer_list.json") for place in beside]
    for file in files:
        if path is not None or file.is_file():
            content = read_json(file)
            if not isinstance(content, str | list) or not all(isinstance(answer, str) for answer in content):
                raise MultiflowError(f"'{file}' holds {content!r:.100}; expected a text or a list of texts")
            answers = list(dict.fromkeys(texts_of(content)))
            if not answers:
                raise MultiflowError(
                    f"'{file}' lists no answers to choose from; write them into it, or take it away to choose from "
                    "those of the training questions"
                )
            break
    else:
        shares: Counter[str] = Counter()
        for known in map(data.known, range(len(data))):
            shares.update(answer_weights(known.texts if known else ()))
        answers = [answer for answer, _ in shares.most_common(most)]
    if not answers:
        raise MultiflowError(f"{data} have no answers; give the candidates in a file answer_list.json beside them")
    return answers
