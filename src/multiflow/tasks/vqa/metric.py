"""VQA accuracy: one prediction against ten people, as the official VQA v2 evaluation counts it.

VQA (arXiv 1505.00468) and VQA v2 (arXiv 1612.00837). With ``n`` answers, leaving out one person after the other:

    accuracy = 100 * mean over i of min(1, |{j != i: answer_j = prediction}| / 3)

Both sides are compared as texts after a normalisation that is not the same for both, and this is the official way too:

- the prediction is stripped, loses its punctuation, is put in lower case, its number words become digits, its articles
  go, its contractions get their apostrophe;
- the answers lose their punctuation only, and even that only if they are not all equal.

So an answer in upper case, or all ten of "Dog.", can never be met. The answers of VQA v2 are in lower case and clean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically

PUNCTUATION = frozenset(';/[]"{}()=+\\_-><@`,?!')
COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(i) for i, word in enumerate(COUNTED)}
ARTICLES = frozenset({"a", "an", "the"})
AGREEING = 3  # other people who have to agree for full marks

PERIOD = re.compile(r"\.(?!\d)")
PERIODS = 32  # at most so many go: the official script passes the flag re.UNICODE where the count belongs
NUMBER_WITH_COMMA = re.compile(r"\d,\d")

APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in APOSTROPHES.split() for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}
"""A word that lacks one apostrophe -> the whole word; the last one is the wrong way round in the official list."""


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the official VQA v2 accuracy, in percent, of a prediction against the answers people gave.

    Args:
        prediction: what a model says, as it says it.
        answers: one per person, ten in VQA v2, as they stand in the annotations. With fewer than four nothing
            reaches 100.

    Raises:
        MultiflowError: fewer than two answers (each is judged by the others), or something is no text.

    >>> vqa_accuracy("Two", ["2"] * 4 + ["three"] * 6)
    100.0
    >>> vqa_accuracy("a dog", ["dog", "dog", "cat", "cat", "cat", "cat", "cat", "cat", "cat", "cat"])
    60.0
    """
    if isinstance(answers, str) or len(answers) < 2:
        raise MultiflowError(f"answers={answers!r} was given; expected the answers of several people, ten in VQA v2")
    for text in (prediction, *answers):
        if not isinstance(text, str):
            raise MultiflowError(
                f"{text!r} of type {type(text).__name__} was given as prediction or answer; expected a text"
            )
    said = normalised(prediction)
    given = [_without_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else answers
    agree = [answer == said for answer in given]
    total = sum(agree)
    return 100 * sum(min(AGREEING, total - own) for own in agree) / (AGREEING * len(agree))


def write_vqa_results(path: str | Path, predictions: Mapping[int | str, str]) -> Path:
    """Write predictions as the file that the VQA challenge on EvalAI takes; return its path.

    The file is a list ``[{"question_id": 1, "answer": "yes"}, ...]``, in the order given.

    Args:
        path: where to; an existing file is replaced.
        predictions: question id, a number or its digits -> answer. EvalAI wants every question of the split.

    Raises:
        MultiflowError: an id is no number or comes twice, an answer is no text, or the file cannot be written.
    """
    records: dict[int, dict[str, int | str]] = {}
    for key, answer in predictions.items():
        if not isinstance(answer, str):
            raise MultiflowError(f"question {key!r} has the answer {answer!r}; expected a text")
        if isinstance(key, bool) or not re.fullmatch(r"\d+", str(key), re.ASCII):
            raise MultiflowError(f"question id {key!r} was given; expected a whole number, as in the VQA v2 files")
        if int(key) in records:
            raise MultiflowError(f"question id {int(key)} was given twice; expected one answer to each question")
        records[int(key)] = {"question_id": int(key), "answer": answer}
    return write_atomically(path, json.dumps(list(records.values())))


def normalised(text: str) -> str:
    """Return a prediction as the official evaluation compares it."""
    words = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    kept = [word for word in (NUMBERS.get(word, word) for word in words) if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def _without_punctuation(text: str) -> str:
    """Drop each sign that stands beside a space anywhere, or all of them if a number has a comma; space out others."""
    clean = text
    for sign in PUNCTUATION.intersection(text):
        dropped = f"{sign} " in text or f" {sign}" in text or NUMBER_WITH_COMMA.search(text)
        clean = clean.replace(sign, "" if dropped else " ")
    return PERIOD.sub("", clean, count=PERIODS)
