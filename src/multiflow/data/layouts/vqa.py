"""Questions about images: VQA v2's own files, and the prepared lists of X-VLM and BLIP."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.data.dataset import Dataset, Known, Question, Skip
from multiflow.data.files import field, load_image, locate, read_json, texts_of

Records = list[tuple[str, tuple[str, ...], str, str]]
"""(question, answers, key, data set), in file order."""

LIST = "question list of X-VLM or BLIP"
MOST_ANSWERS = 3128  # as many as the published list of candidates has
FOLDERS = {"vg": ("visual_genome", "vg"), "vqa": ("coco", "coco/images", "vqa")}
"""Value of ``dataset`` in a prepared list -> the folders in which its images may lie, beside or under the given one."""


def open_vqa(content: dict[str, Any], path: Path, images: Path | None) -> Dataset[Question]:
    """Read ``v2_OpenEnded_mscoco_SUBSET_questions.json`` with the ``v2_mscoco_SUBSET_annotations.json`` beside it.

    Without annotations (a test split) the questions have no answers.
    """
    answers = _answers(path)
    subset = (content.get("data_subtype") or _subset(path)).replace("test-dev", "test")  # a part of the test images
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
    records = [(text, (answers or {}).get(key, ()), key, "") for _, text, key in asked]
    return _dataset("VQA v2 questions", path, records, locate(manners, path.parent, images, f"'{path}'"))


def open_question_list(content: list[Any], path: Path, images: Path | None) -> Dataset[Question]:
    """Read a prepared list ``[{image, question, answer?, question_id?, dataset?}]``.

    The answer is a text or a list of texts. ``dataset`` ("vqa" or "vg") is where a question is from: it tells which
    folder an image name belongs to.
    """
    records: Records = []
    names: list[str] = []
    for i, record in enumerate(content):
        where = f"entry {i} of '{path}'"
        answers = texts_of(record["answer"], where) if "answer" in record else ()
        names.append(field(record, "image", str, where))
        key, dataset = str(record.get("question_id", i)), str(record.get("dataset", ""))
        records.append((field(record, "question", str, where), answers, key, dataset))
    paths = [""] * len(names)
    for kind in dict.fromkeys(dataset for *_, dataset in records):
        of_kind = [i for i, (*_, dataset) in enumerate(records) if dataset == kind]
        manners = [[os.path.join(folder, names[i]) for i in of_kind] for folder in ("", *FOLDERS.get(kind, ()))]
        for i, place in zip(of_kind, locate(manners, path.parent, images, f"'{path}'"), strict=True):
            paths[i] = place
    return _dataset(LIST, path, records, paths)


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
            answers = list(dict.fromkeys(texts_of(read_json(file), f"'{file}'")))
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


def _answers(path: Path) -> dict[str, tuple[str, ...]] | None:
    """Return question id -> the answers people gave, or None when there is no file of annotations."""
    beside = _annotations(path)
    if beside == path or not beside.is_file():
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


def _dataset(layout: str, path: Path, records: Records, paths: list[str]) -> Dataset[Question]:
    """Make the data set; entries whose question is blank are noted as skipped."""
    good = [i for i, (question, *_) in enumerate(records) if question.strip()]
    if not good:
        raise MultiflowError(f"'{path}' holds no questions")
    skipped = tuple(Skip(key, "no question") for question, _, key, _ in records if not question.strip())
    records, paths = [records[i] for i in good], [paths[i] for i in good]
    read, known = partial(_read, paths, records), partial(_known, paths, records)
    return Dataset("questions", layout, str(path), len(records), read, known=known, skipped=skipped)


def _read(paths: list[str], records: Records, index: int) -> Question:
    return Question(load_image(paths[index], os.path.basename(paths[index])), *records[index])


def _known(paths: list[str], records: Records, index: int) -> Known:
    return Known(paths[index], records[index][1])
