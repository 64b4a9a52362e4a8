"""Word error rates, against counts by hand and what jiwer's own documentation calls them."""

from __future__ import annotations

import sys

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.tasks.transcription.metric import Errors, character_errors, normalizer, rate_of, word_errors

pytest.importorskip("jiwer")


@pytest.mark.parametrize(
    ("written", "said", "wrong", "words"),
    [
        ("the cat sat", "the cat sat", 0, 3),
        ("the cat", "the cat sat", 1, 3),  # left out
        ("the cat sat down", "the cat sat", 1, 3),  # put in
        ("a cat sat", "the cat sat", 1, 3),  # replaced
        ("sat cat the", "the cat sat", 2, 3),
        ("", "the cat sat", 3, 3),
        ("one two", "", 2, 0),
        ("", "", 0, 0),
        ("no no no no", "yes", 4, 1),
    ],
)
def test_errors_are_the_fewest_changes(written, said, wrong, words):
    assert word_errors(written, said) == (wrong, words)


def test_the_rate_of_several_is_that_of_all_words_together():
    errors = [word_errors("a b", "a b c"), word_errors("x", "x"), word_errors("q q q", "z")]
    assert rate_of(errors) == pytest.approx(100 * (1 + 0 + 3) / 5)
    assert Errors(2, 0).rate == 100
    assert Errors(0, 0).rate == 0


def test_characters_are_counted_with_the_spaces_between_words():
    assert character_errors("the  cat", "the cats") == (1, 8)


def test_english_is_normalised_as_whisper_is_measured():
    clean = normalizer("english", ())
    assert word_errors("I am twenty years old", "I'm 20 years old.", clean).wrong == 0
    assert word_errors("It's, um, Mister Smith", "it is mr smith", clean).wrong == 0
    british = normalizer("english", (), {"colour": "color"})
    assert word_errors("colour", "color", british).wrong == 0


def test_other_languages_keep_their_letters():
    clean = normalizer(None, ("Schöne Grüße!",))
    assert word_errors("schöne grüße", "Schöne Grüße!", clean).wrong == 0
    assert word_errors("schöne gruße", "Schöne Grüße!", clean).wrong == 1
    assert normalizer("none", ())("As It Is.") == "As It Is."


def test_an_unknown_normalizer_is_named():
    with pytest.raises(MultiflowError, match="did you mean 'english'"):
        normalizer("englisch", ())


def test_without_jiwer_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(MultiflowError, match=r"multiflow-pruning\[audio\]"):
        word_errors("a", "b")
