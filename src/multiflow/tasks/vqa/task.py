"""Visual question answering: of a list of answers the one that the decoder finds likeliest, by the official accuracy.

As X-VLM (arXiv 2111.08276) and BLIP (arXiv 2201.12086) are fine-tuned and evaluated on VQA v2: in training every answer
counts by the share of people who gave it, with X-VLM half as much where the question is from Visual Genome; at test the
128 answers of the likeliest first token are scored whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import rank
from multiflow.calibration import evaluating
from multiflow.data import Dataset, answer_list, answer_weights
from multiflow.data.items import TaskData, open_kind, take_items
from multiflow.families.family import family_of
from multiflow.tasks.inputs import (
    TaskInputs,
    clean,
    in_batches,
    make_samples,
    samples_at,
    text_inputs,
    to_tensor,
    training_picture,
)
from multiflow.tasks.task import Figures, Task, model_loss
from multiflow.tasks.vqa.metric import vqa_accuracy, write_vqa_results

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOP = 128
RESULTS = "vqa_results.json"
LIST = "answer_list.json"
PEOPLE = 2  # each answer is judged by those of the others


def open_questions(
    source: str | Path,
    split: str | None,
    *,
    images: str | Path | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    **columns: str | None,
) -> TaskData:
    """Open questions with the answers to choose from: ``answer_list.json`` beside them, else those of ``train``.

    Arguments and errors are those of `multiflow.data.items.open_items`; there must be answers to choose from.
    """
    data = open_kind("vqa", "questions", source, split, images, **columns)
    choices = answer_list(_of_candidates(data, source, split, images, columns))
    taken = take_items(data, limit=limit, skip_missing=skip_missing)
    given = {answer for answers in taken.texts for answer in answers}
    if given and given.isdisjoint(choices):
        raise MultiflowError(
            f"none of the {len(given)} answers in '{data.source}', such as '{min(given)}', is in the list to choose "
            f"from, which begins with '{choices[0]}'; put the {LIST} of these questions beside them"
        )
    return TaskData(taken.source, taken.items, taken.read, taken.texts, tuple(choices), taken.skipped)


def _of_candidates(
    data: Dataset[Any],
    source: str | Path,
    split: str | None,
    images: str | Path | None,
    columns: Mapping[str, str | None],
) -> Dataset[Any]:
    """Return the questions whose list of answers, or whose answers, are chosen from: never those of a test."""
    beside = any(Path(place).with_name(LIST).is_file() for place in data.source.split(" + "))
    if beside or split is None or "train" in split.split("+"):
        return data
    try:
        return open_kind("vqa", "questions", source, "train", images, **columns)
    except MultiflowError as error:
        raise MultiflowError(
            f"there are no answers to choose from: no {LIST} lies beside '{data.source}', and its training questions "
            f"cannot be read ({error}); put the file there"
        ) from error


def check_answers(data: TaskData, val_data: TaskData, **options: Any) -> None:
    """Raise an error where a question to train on has no answer, or one to choose the best checkpoint by too few.

    Answers of the latter that are not in the list to choose from, and so bound the accuracy, are a warning.
    """
    lacking = sum(not answers for answers in data.texts)
    if lacking:
        raise MultiflowError(
            f"{lacking} of {data} have no answers; train on a split whose questions have them: {{train_split=NAME}}",
            field="train_split",
        )
    try:
        check_comparable(val_data)
    except MultiflowError as error:
        raise MultiflowError(
            f"{error}; choose the best checkpoint on another split, with {{val_split=NAME}}", field="val_split"
        ) from error
    if val_data.unlisted and rank() == 0:
        warnings.warn(val_data.unlisted, stacklevel=3)


def check_comparable(data: TaskData) -> None:
    lone = sum(len(answers) < PEOPLE for answers in data.texts)
    if lone:
        raise MultiflowError(
            f"{lone} of {data} have answers of fewer than {PEOPLE} people, and the official accuracy compares with "
            "those of several (ten in VQA v2)"
        )


def question_inputs(model: Any, tokenizer: PreTrainedTokenizerBase, **options: Any) -> TaskInputs:
    """Return the inputs of `text_inputs`, with the weights of the questions that the model was published with."""
    family = family_of(model)
    return text_inputs(model, tokenizer, weights=family.answer_weights if family else {}, **options)


def question_batch(data: TaskData, inputs: TaskInputs, batch_size: int, position: int) -> dict[str, Any]:
    """Return questions with all their answers, weighted by the share of people who gave each and by the data set."""

    def make(number: int, index: int) -> tuple[Any, str, Mapping[str, float]]:
        item = data[index]
        if not item.answers:
            raise MultiflowError(f"question {item.key} has no answers; train on a split whose questions have them")
        much = inputs.weights.get(item.dataset, 1.0)
        weights = {answer: much * share for answer, share in answer_weights(item.answers).items()}
        return training_picture(item, (item.question, *weights), inputs, number), clean(item.question), weights

    made = make_samples(make, samples_at(len(data), inputs, batch_size, position))
    ids, mask = inputs.encode([question for _, question, _ in made])
    answers = [answer for *_, weights in made for answer in weights]
    answer_ids, answer_mask = inputs.encode(answers, end=True)
    return {
        "pixel_values": to_tensor([picture for picture, *_ in made], inputs),
        "input_ids": ids,
        "attention_mask": mask,
        "answer_ids": answer_ids,
        "answer_mask": answer_mask,
        "answer_weights": torch.tensor([weight for *_, weights in made for weight in weights.values()]),
        "answers_per_question": torch.tensor([len(weights) for *_, weights in made]),
    }


@torch.no_grad()
def answer_questions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    *,
    batch_size: int = 32,
    top: int = TOP,
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> list[tuple[str, str]]:
    """Return (id of the question, answer) of every question, of ``data.choices``; ``top`` of them are scored whole."""
    if top < 1:
        raise MultiflowError(f"top {top} was given; expected at least 1 answer to score whole")
    inputs = text_inputs(model, tokenizer, **how)
    candidates = [x.to(model.device) for x in inputs.encode(data.choices, end=True)]
    said: list[tuple[str, str]] = []
    with evaluating(model):
        for items, pixels in in_batches(model, data, inputs, batch_size, progress):
            ids, mask = (x.to(model.device) for x in inputs.encode([clean(item.question) for item in items]))
            best, _ = model.rank_answers(pixels, ids, mask, *candidates, k=top)
            chosen = best[:, 0].tolist()
            said += [(item.key, data.choices[i]) for item, i in zip(items, chosen, strict=True)]
    return said


def evaluate_vqa(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    save: str | Path | None = None,
    top: int = TOP,
    **how: Any,
) -> Figures:
    """Answer every question and score the answers as the official evaluation does.

    See `Task.evaluate`; ``save`` gets ``vqa_results.json``, the file that EvalAI takes, and is needed where the data
    have no answers, as in a test split; ``top`` answers of the list are scored whole.

    Returns:
        ``accuracy``; ``listed``: what always choosing the best answer of the list would reach; none without answers.
        ``each`` is the accuracy of each question, in the order of the data.

    Raises:
        MultiflowError: there are neither answers nor ``save``, or a question has one answer alone.
    """
    if check_purpose(data, save):
        check_comparable(data)
    found = answer_questions(model, tokenizer, data, batch_size=batch_size, top=top, progress=progress, **how)
    figures = vqa_figures(found, data, save, vqa_accuracy)
    if not figures:
        return figures
    listed, best = frozenset(data.choices), []
    for answers in data.texts:
        best.append(max((vqa_accuracy(answer, answers) for answer in {*answers} & listed), default=0.0))
    return Figures({**figures, "listed": fmean(best)}, figures.each, figures.said)


def check_purpose(data: TaskData, save: str | Path | None) -> bool:
    """Return whether there are answers to compare with.

    Raises:
        MultiflowError: there are neither answers nor a folder for what the model says.
    """
    answered = all(data.texts)
    if not answered and save is None:
        raise MultiflowError(
            f"{data} have no answers to compare with; give {{save=DIR}} to write the file for EvalAI", field="save"
        )
    return answered


def vqa_figures(
    found: Sequence[tuple[str, str]],
    data: TaskData,
    save: str | Path | None,
    accuracy: Callable[[str, Sequence[str]], float],
) -> Figures:
    """Return the accuracy of (id of the question, answer) of every question; no figures where there are no answers.

    Args:
        found: in the order of the data.
        data: the questions.
        save: folder that gets ``vqa_results.json``, the file that EvalAI takes.
        accuracy: ``accuracy(answer, right answers)`` in percent.
    """
    said = [text for _, text in found]
    if save is not None:
        write_vqa_results(Path(save) / RESULTS, dict(found))
    if not all(data.texts):
        return Figures({}, said=said)
    right = [accuracy(text, answers) for text, answers in zip(said, data.texts, strict=True)]
    return Figures({"accuracy": fmean(right)}, right, said)


TASK = Task(
    name="vqa",
    open=open_questions,
    options=lambda data: {},
    inputs=question_inputs,
    batch=question_batch,
    loss=model_loss,
    evaluate=evaluate_vqa,
    main="accuracy",
    best="accuracy",
    check=check_answers,
)
