from __future__ import annotations

import re

from multiflow.worlds.shapes import STYLES, VOCABULARY, describe, make_scenes, questions, regions


def test_vocabulary_is_exactly_what_the_grammar_says() -> None:
    words: set[str] = set()
    for style in STYLES:
        for scene in make_scenes("train", 600, style=style):
            texts = [*describe(scene), *(phrase for phrase, _ in regions(scene))]
            texts += [text for q in questions(scene) for text in (q.question, q.answer)]
            words.update(word for text in texts for word in re.sub("[,?]", "", text).split())
    assert sorted(words) == list(VOCABULARY)


def test_vocabulary_is_small_and_of_single_words() -> None:
    assert len(VOCABULARY) < 128
    assert all(re.fullmatch("[a-z]+|[0-4]", word) for word in VOCABULARY)
