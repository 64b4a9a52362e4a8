"""Questions about images: VQA v2's own files, and plain lists of questions."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from multiflow.data.base import Dataset, Question
from multiflow.data.files import field, image_root, inside, load_image, read_json, texts_of
from multiflow.errors import MultiflowError

Records = list[tuple[str, str, tuple[str, ...], str]]
"""(image name, question, answers, key), in file order."""


def open_vqa(content: dict[str, Any], path: Path, images: Path | None) -> Dataset[Question]:
    """Read ``v2_OpenEnded_mscoco_SUBSET_questions.json`` with the ``v2_mscoco_SUBSET_annotations.json`` beside it.

    Without annotations (a test split) the questions have no answers.
    """
    answers = _answers(path)
    subset = content.get("data_subtype") or _subset(path)
    asked = []
    for i, record in enumerate(field(content, "questions", list, f"'{path}'")):
        where = f"question {i} of '{path}'"
        image, key = (field(record, name, (int, str), where) for name in ("image_id", "question_id"))
        asked.append((str(image), field(record, "question", str, where), str(key)))
    if answers is not None and (lacking := next((key for _, _, key in asked if key not in answers), None)):
        raise MultiflowError(
            f"question {lacking} of '{path}' has no answer in '{_annotations(path)}'; fetch both again"
        )
    if not asked:
        raise MultiflowError(f"'{path}' holds no questions")
    names = _image_names(asked, subset, path, images)
    records = [
        (name, text, (answers or {}).get(key, ()), key) for name, (_, text, key) in zip(names, asked, strict=True)
    ]
    return _dataset("VQA v2 questions", path, images, records)


def open_question_list(content: list[Any], path: Path, images: Path | None) -> Dataset[Question]:
    """Read a plain list ``[{image, question, answer?, question_id?}]``; the answer is a text or a list of texts."""
    records: Records = []
    for i, record in enumerate(content):
        where = f"entry {i} of '{path}'"
        answers = texts_of(record["answer"], where) if "answer" in record else ()
        image, question = (field(record, name, str, where) for name in ("image", "question"))
        records.append((image, question, answers, str(record.get("question_id", i))))
    return _dataset("plain question list", path, images, records)


def _answers(path: Path) -> dict[str, tuple[str, ...]] | None:
    """Return question id -> the answers people gave, or None when there is no file of annotations."""
    beside = _annotations(path)
    if not beside.is_file():
        return None
    answers = {}
    for i, record in enumerate(field(read_json(beside), "annotations", list, f"'{beside}'")):
        where = f"annotation {i} of '{beside}'"
        given = [field(a, "answer", str, where) for a in field(record, "answers", list, where)]
        answers[str(field(record, "question_id", (int, str), where))] = texts_of(given, where)
    return answers


def _annotations(path: Path) -> Path:
    return path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))


def _subset(path: Path) -> str:
    """Return ``train2014`` from ``v2_OpenEnded_mscoco_train2014_questions.json``."""
    match = re.search(r"mscoco_([^_]+)_questions", path.name)
    return match[1] if match else "train2014"


def _image_names(asked: list[tuple[str, str, str]], subset: str, path: Path, images: Path | None) -> list[str]:
    """Return the image name of every question, in the first of the usual manners that exists on disk."""
    coco = f"COCO_{subset}_{{:0>12}}.jpg"
    manners = (f"{subset}/{coco}", coco, "{:0>12}.jpg", "{}.jpg", "{}.png")
    failure = None
    for manner in manners:
        names = [manner.format(image) for image, _, _ in asked]
        try:
            image_root(path.parent, images, names, f"'{path}'")
        except MultiflowError as error:
            failure = failure or error
            continue
        return names
    assert failure is not None
    raise failure


def _dataset(layout: str, path: Path, images: Path | None, records: Records) -> Dataset[Question]:
    if not records:
        raise MultiflowError(f"'{path}' holds no questions")
    root = image_root(path.parent, images, (record[0] for record in records), f"'{path}'")
    for record in records:
        inside(root, record[0], f"'{path}'")
    return Dataset("questions", layout, str(path), len(records), partial(_read, str(root), records))


def _read(root: str, records: Records, index: int) -> Question:
    name, question, answers, key = records[index]
    return Question(load_image(os.path.join(root, name), name), question, answers, key)
