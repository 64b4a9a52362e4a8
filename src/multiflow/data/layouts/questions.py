"""Questions about images: VQA v2's own files, and the prepared lists of X-VLM and BLIP."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from PIL import Image

from multiflow.base.errors import MultiflowError
from multiflow.base.files import read_json
from multiflow.data.dataset import Dataset, Question, Skip
from multiflow.data.images import data_of_files, locate, texts_of
from multiflow.data.layouts import LAYOUTS, DataLayout, Place, list_of, with_list

Texts = str | list[str]
FOLDERS = {"vg": ("visual_genome", "vg"), "vqa": ("coco", "coco/images", "vqa")}
"""Value of ``dataset`` in a prepared list -> the folders in which its images may lie, beside or under the given one."""


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


class ListedQuestion(Struct):
    """A question of a prepared list; `dataset` ("vqa" or "vg") tells which folder an image name belongs to."""

    image: str
    question: str
    answer: Texts = ""
    question_id: int | str | None = None
    dataset: str = ""


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
    """Read a prepared list ``[{image, question, answer?, question_id?, dataset?}]``."""
    listed = place.as_(list[ListedQuestion])
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
    "question-list",
    DataLayout(
        "a JSON list of {image, question, answer}",
        list_of("question"),
        _read_list,
        companions=["answer_list.json"],
        joins=True,
    ),
)
