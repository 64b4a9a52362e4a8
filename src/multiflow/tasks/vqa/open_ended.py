"""Visual question answering by any model that writes: its own words against the answers people gave.

A chat model is asked as LLaVA 1.5 (arXiv 2310.03744) is, for a single word or phrase; PaliGemma (arXiv 2407.07726) and
BLIP-2 (arXiv 2301.12597) in the words that they were trained with. Where a question has one answer alone, so that the
official accuracy is not defined, a prediction is right if it equals that answer after the official normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from multiflow.base.errors import MultiflowError
from multiflow.data.examples import example_of
from multiflow.data.items import TaskData, open_items
from multiflow.data.sampling import Stream, random_at
from multiflow.families.automatic.reading import Reader
from multiflow.families.automatic.tasks import refuse_unable
from multiflow.tasks.inputs import make_samples, samples_at
from multiflow.tasks.read import Progress, ReadInputs, by_processor, training_sample, write_texts
from multiflow.tasks.task import Figures
from multiflow.tasks.vqa.metric import normalised, vqa_accuracy
from multiflow.tasks.vqa.task import TASK, check_purpose, vqa_figures

LONGEST = 16  # tokens of an answer
ASKED = {
    "chat": "{}\nAnswer the question using a single word or phrase.",
    "suffix": "answer en {}",
    "plain": "Question: {} Answer:",
}


def asked(reader: Reader, question: str) -> str:
    """Return a question as a model is asked it: in the user's words where they have ``{}``, or in the usual ones."""
    given = reader.prompt if reader.prompt and "{}" in reader.prompt else None
    return (given or ASKED.get(reader.manner, "{}")).replace("{}", question)


def evaluate_open_ended(
    model: Any,
    reader: Reader,
    data: TaskData,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    save: str | Path | None = None,
    max_new_tokens: int | None = None,
    **pixels: Any,
) -> Figures:
    """Answer every question in the model's own words.

    See `Task.evaluate`; ``save`` gets ``vqa_results.json``, the file that EvalAI takes, and is needed where the data
    have no answers, as in a test split.

    Returns:
        ``accuracy``; none without answers. ``each`` is the accuracy of each question.

    Raises:
        MultiflowError: the model writes no texts, or there are neither answers nor ``save``.
    """
    refuse_unable(model, "vqa")
    check_purpose(data, save)
    longest = max_new_tokens or LONGEST
    found = write_texts(
        model,
        reader,
        data,
        lambda item: asked(reader, item.question),
        batch_size=batch_size,
        longest=longest,
        progress=progress,
    )
    return vqa_figures([(key, text.split("\n")[0].strip()) for key, text in found], data, save, accuracy)


def accuracy(said: str, answers: Sequence[str]) -> float:
    """Return the official accuracy in percent; of a single answer, whether it is met.

    >>> accuracy("A dog.", ("dog",))
    100.0
    """
    return 100.0 * (normalised(said) == normalised(answers[0])) if len(answers) == 1 else vqa_accuracy(said, answers)


def question_samples(data: TaskData, inputs: ReadInputs, batch_size: int, position: int) -> dict[str, Any]:
    """Return questions with one of their answers, drawn by how many people gave it."""

    def make(number: int, index: int) -> Any:
        item = data[index]
        drawn = example_of(item, random_at(inputs.seed, Stream.CAPTION, number).random())
        return training_sample(item, drawn.text, asked(inputs.reader, item.question), inputs, number)

    return inputs.reader.examples(make_samples(make, samples_at(len(data), inputs, batch_size, position)))


def check_answered(data: TaskData, val_data: TaskData, **options: Any) -> None:
    """Raise an error where a question to train on, or to choose the best checkpoint by, has no answer."""
    for name, of in (("train_split", data), ("val_split", val_data)):
        if lacking := sum(not answers for answers in of.texts):
            raise MultiflowError(
                f"{lacking} of {of} have no answers; take a split whose questions have them: {{{name}=NAME}}",
                field=name,
            )


OPEN_ENDED = by_processor(
    TASK,
    evaluate_open_ended,
    open=partial(open_items, "vqa", "questions"),
    batch=question_samples,
    check=check_answered,
)
