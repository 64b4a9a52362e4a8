"""Questions about images: VQA v2's own files, and the prepared lists of X-VLM and BLIP."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import Struct, defstruct, field
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_json
from multiflow.data.dataset import Dataset, Question, Skip
from multiflow.data.images import data_of_files, locate, texts_of
from multiflow.data.layouts import LAYOUTS, DataLayout, Place, list_of, with_list
from multiflow.data.tables import IMAGE_KEYS, TABLES, column_of, header_of, rows_of

Texts = str | list[str]
FOLDERS = {"vg": ("visual_genome", "vg"), "vqa": ("coco", "coco/images", "vqa")}
"""Value of ``dataset`` in a prepared list -> the folders in which its images may lie, beside or under the given one."""


ANSWER_KEYS = ("answer", "answers", "multiple_choice_answer", "label")


class Asked(Struct):
    """A question of VQA v2."""

    image_id: int | str
    question_id: int | str
    question: str


class Questions(Struct):
    """VQA v2's file of questions."""

    questions: list[Asked]
    data_subtype: str = ""


class Answer(Struct):
    """What one person answered."""

    answer: str


class Annotation(Struct):
    """The answers to a question."""

    question_id: int | str
    answers: list[Answer]


class Annotations(Struct):
    """VQA v2's file of answers."""

    annotations: list[Annotation]


def _read_vqa(place: Place) -> Dataset[Question]:
    """Read VQA v2's questions with the annotations beside them; without these (a test split) they have no answers."""
    file, path = place.as_(Questions), place.path
    answers = _answers(place)
    asked = file.questions
    lacking = [of.question_id for of in asked if answers is not None and str(of.question_id) not in answers]
    if lacking:
        raise MultiflowError(
            f"question {lacking[0]} of '{path}' has no answer in '{_annotations(path)}'; fetch both again"
        )
    subset = (file.data_subtype or _subset(path)).replace("test-dev", "test")  # a part of the test images
    numbers = [str(of.image_id) for of in asked]
    coco = [f"COCO_{subset}_{number:0>12}.jpg" for number in numbers]
    manners = [[f"{subset}/{name}" for name in coco], coco, [f"{number:0>12}.jpg" for number in numbers]]
    manners += [[f"{number}{suffix}" for number in numbers] for suffix in (".jpg", ".png")]
    paths = locate(manners, path.parent, place.images, f"'{path}'") if asked else []
    keys = [str(of.question_id) for of in asked]
    parts = [(of.question, (answers or {}).get(key, ()), key) for of, key in zip(asked, keys, strict=True)]
    return _dataset("VQA v2 questions", path, paths, parts)


def _read_list(place: Place) -> Dataset[Question]:
    """Read a list ``[{image, question, answer?, question_id?, dataset?}]``, its image and answer under a usual name.

    ``dataset`` ("vqa" or "vg") tells which folder an image name belongs to.
    """
    first = place.content[0]
    image = column_of(place, "image", place.image_column, IMAGE_KEYS, first) or IMAGE_KEYS[0]
    answer = column_of(place, "answer", None, ANSWER_KEYS, first) or ANSWER_KEYS[0]
    fields: list[Any] = [
        ("image", str, field(name=image)),
        ("question", str),
        ("answer", Texts | None, field(name=answer, default="")),
        ("question_id", int | str | None, None),
        ("dataset", str, ""),
    ]
    row: Any = defstruct("ListedQuestion", fields)
    listed = place.as_(list[row])
    paths = [""] * len(listed)
    for kind in dict.fromkeys(of.dataset for of in listed):
        here = [i for i, of in enumerate(listed) if of.dataset == kind]
        manners = [[os.path.join(folder, listed[i].image) for i in here] for folder in ("", *FOLDERS.get(kind, ()))]
        for i, found in zip(here, locate(manners, place.path.parent, place.images, f"'{place.path}'"), strict=True):
            paths[i] = found
    parts = [
        (of.question, texts_of(of.answer), str(i if of.question_id is None else of.question_id), of.dataset)
        for i, of in enumerate(listed)
    ]
    return _dataset("question list of X-VLM or BLIP", place.path, paths, parts)


def _header(place: Place) -> list[str]:
    """Return the columns of a table; none where its first row does not close."""
    first = next(iter(rows_of(place.lines[:64], [])), (0, []))[1] if place.lines else []
    return [cell.strip() for cell in first]


def _is_table(place: Place) -> bool:
    if place.text_column is not None:
        return False
    header = dict.fromkeys(_header(place))
    return (
        "question" in header and (place.image_column or column_of(place, "image", None, IMAGE_KEYS, header)) in header
    )


def _read_table(place: Place) -> Dataset[Question]:
    """Read a table with a column of questions: those of one image that are the same gather their answers."""
    names, skipped = _header(place), list[Skip]()
    at = header_of(place, names, IMAGE_KEYS, ANSWER_KEYS, ("question",))
    image = column_of(place, "image", place.image_column, IMAGE_KEYS, at)
    answer = column_of(place, "answer", None, ANSWER_KEYS, at)
    gathered: dict[tuple[str, str], list[str]] = {}
    for number, cells in list(rows_of(place.lines, skipped))[1:]:
        if len(cells) != len(names):
            skipped.append(Skip(f"line {number}", f"it has {len(cells)} cells; the header names {len(names)}"))
            continue
        key = cells[at[str(image)]].strip(), cells[at["question"]].strip()
        gathered.setdefault(key, []).extend([] if answer is None else [cells[at[answer]]])
    if not gathered:
        raise MultiflowError(f"'{place.path}' holds no questions")
    paths = locate([[name for name, _ in gathered]], place.path.parent, place.images, f"'{place.path}'")
    parts = [(asked, texts_of(said), str(i)) for i, ((_, asked), said) in enumerate(gathered.items())]
    data = _dataset(f"table of questions {place.path.name}", place.path, paths, parts)
    return replace(data, skipped=(*skipped, *data.skipped))


def _dataset(layout: str, path: Path, paths: Sequence[str], parts: Sequence[tuple[Any, ...]]) -> Dataset[Question]:
    good = [i for i, (question, *_) in enumerate(parts) if question.strip()]
    if not good:
        raise MultiflowError(f"'{path}' holds no questions")
    skipped = [Skip(key, "no question") for question, _, key, *_ in parts if not question.strip()]
    parts, paths = [parts[i] for i in good], [paths[i] for i in good]
    names, texts = list(map(os.path.basename, paths)), [answers for _, answers, *_ in parts]
    return data_of_files("questions", layout, path, paths, names, _make_question, parts, texts, skipped=skipped)


def _make_question(
    image: Image.Image, name: str, question: str, answers: tuple[str, ...], key: str, dataset: str = ""
) -> Question:
    return Question(image, question, answers, key, dataset)


def _answers(place: Place) -> dict[str, tuple[str, ...]] | None:
    """Return question id -> the answers people gave, or None when there is no file of annotations."""
    beside = _annotations(place.path)
    if beside == place.path or not beside.is_file():
        return None
    listed = place.as_(Annotations, read_json(beside), beside).annotations
    return {str(of.question_id): texts_of([one.answer for one in of.answers]) for of in listed}


def _annotations(path: Path) -> Path:
    return path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))


def _subset(path: Path) -> str:
    match = re.search(r"mscoco_([^_]+)_questions", path.name)
    return match[1] if match else "train2014"


LAYOUTS.add(
    "vqa",
    DataLayout(
        "v2_*_questions.json with v2_*_annotations.json (VQA v2)",
        with_list("questions"),
        _read_vqa,
        companions=["*_annotations.json"],
    ),
)
LAYOUTS.add(
    "question-table",
    DataLayout(
        "a table (.csv, .tsv) with columns of images, questions and answers",
        _is_table,
        _read_table,
        joins=True,
        suffixes=TABLES,
    ),
)
LAYOUTS.add(
    "question-list",
    DataLayout(
        "a JSON list of {image, question, answer}",
        list_of("question"),
        _read_list,
        companions=["answer_list.json"],
        joins=True,
    ),
)
