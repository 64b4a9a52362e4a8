"""Word error rate (WER): the fewest words to replace, put in and take out, over the words that were said, in percent.

WER = 100 (S + D + I) / N, counted by jiwer. Both texts are normalised first, as Whisper (arXiv 2212.04356) is measured:
by transformers' ``EnglishTextNormalizer`` (numbers as digits, no contractions, no fillers), or by its
``BasicTextNormalizer`` for other languages, which takes signs and case away. Above 100 where more is made up than said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from multiflow.base.errors import MultiflowError, unknown

Normalize = Callable[[str], str]
NORMALIZERS = ("english", "basic", "none")


class Errors(NamedTuple):
    """What is wrong with a transcript, in words or in characters."""

    wrong: int  # replaced, put in or left out
    said: int  # in the reference

    @property
    def rate(self) -> float:
        """The share in percent; of a reference without words 0 or 100."""
        return 100 * self.wrong / self.said if self.said else 100.0 * bool(self.wrong)


def word_errors(written: str, reference: str, normalize: Normalize = str.lower) -> Errors:
    """Count the word errors of a transcript.

    Args:
        written: by the model.
        reference: what was said.
        normalize: applied to both first, see `normalizer`.

    Raises:
        MultiflowError: jiwer is not installed.

    >>> word_errors("the cat sat", "The cat sat down")
    Errors(wrong=1, said=4)
    """
    return _counted("words", normalize(reference), normalize(written))


def character_errors(written: str, reference: str, normalize: Normalize = str.lower) -> Errors:
    """Count the errors of a transcript character by character; arguments as of `word_errors`."""
    return _counted("characters", normalize(reference), normalize(written))


def rate_of(errors: Sequence[Errors]) -> float:
    """Return the error rate of several transcripts in percent: all errors over all that was said.

    >>> rate_of([Errors(1, 4), Errors(0, 6)])
    10.0
    """
    return Errors(sum(of.wrong for of in errors), sum(of.said for of in errors)).rate


def _counted(what: Literal["words", "characters"], said: str, written: str) -> Errors:
    said, written = (" ".join(text.split()) for text in (said, written))
    parts = [text.split() if what == "words" else list(text) for text in (said, written)]
    if not said or not written:
        return Errors(max(map(len, parts)), len(parts[0]))
    try:
        import jiwer
    except ImportError as error:
        raise MultiflowError(
            "word error rates are counted with jiwer, which is not installed; install it with "
            "'pip install multiflow-pruning[audio]'"
        ) from error
    found: Any = (jiwer.process_words if what == "words" else jiwer.process_characters)(said, written)
    return Errors(found.substitutions + found.deletions + found.insertions, len(parts[0]))


def normalizer(name: str | None, references: Sequence[str], spelling: Mapping[str, str] | None = None) -> Normalize:
    """Return what both texts go through before they are compared.

    Args:
        name: ``english``, ``basic`` or ``none``; None = ``english`` where all references are written in ASCII, as
            English is, else ``basic``.
        references: what was said.
        spelling: British spelling -> American, as Whisper's own tokenizer has it.

    Raises:
        MultiflowError: another name.
    """
    if name is None:
        name = "english" if all(text.isascii() for text in references) else "basic"
    if name not in NORMALIZERS:
        raise unknown("normalizer", name, NORMALIZERS)
    if name == "none":
        return str
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer(dict(spelling or {})) if name == "english" else BasicTextNormalizer()
