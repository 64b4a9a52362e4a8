"""Questions about images: VQA v2's own files, and plain lists of questions."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from multiflow.data.base import Dataset, Question
from multiflow.data.files import field, load_image, locate, read_json, texts_of
from multiflow.errors import MultiflowError

Records = list[tuple[str, tuple[str, ...], str]]
"""(question, answers, key), in file order."""


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
    coco = f"COCO_{subset}_{{:0>12}}.jpg"
    manners = [
        [manner.format(image) for image, _, _ in asked]
        for manner in (f"{subset}/{coco}", coco, "{:0>12}.jpg", "{}.jpg", "{}.png")
    ]
    records = [(text, (answers or {}).get(key, ()), key) for _, text, key in asked]
    return _dataset("VQA v2 questions", path, images, records, manners)


def open_question_list(content: list[Any], path: Path, images: Path | None) -> Dataset[Question]:
    """Read a plain list ``[{image, question, answer?, question_id?}]``; the answer is a text or a list of texts."""
    records: Records = []
    names = []
    for i, record in enumerate(content):
        where = f"entry {i} of '{path}'"
        answers = texts_of(record["answer"], where) if "answer" in record else ()
        names.append(field(record, "image", str, where))
        records.append((field(record, "question", str, where), answers, str(record.get("question_id", i))))
    return _dataset("plain question list", path, images, records, [names])


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


def _dataset(
    layout: str, path: Path, images: Path | None, records: Records, manners: list[list[str]]
) -> Dataset[Question]:
    if not records:
        raise MultiflowError(f"'{path}' holds no questions")
    paths = locate(manners, path.parent, images, f"'{path}'")
    return Dataset("questions", layout, str(path), len(records), partial(_read, paths, records))


def _read(paths: list[str], records: Records, index: int) -> Question:
    question, answers, key = records[index]
    return Question(load_image(paths[index], os.path.basename(paths[index])), question, answers, key)
