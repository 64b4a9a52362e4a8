from __future__ import annotations

import pytest

from multiflow.worlds.shapes import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES, lexicon


def test_every_concept_has_words_and_no_word_has_two_meanings() -> None:
    tables = (
        (lexicon.NOUNS, SHAPES),
        (lexicon.COLOUR_WORDS, COLOURS),
        (lexicon.SIZE_WORDS, SIZES),
        (lexicon.FILL_WORDS, FILLS),
        (lexicon.BACKGROUND_WORDS, BACKGROUNDS),
    )
    for table, concepts in tables:
        assert tuple(table) == concepts
        words = [word for synonyms in table.values() for word in synonyms]
        assert len(words) == len(set(words))
    objects = [w for table, _ in tables[:4] for synonyms in table.values() for w in synonyms]
    assert len(objects) == len(set(objects))


def test_the_table_reads_every_word_back() -> None:
    for kind, table in (("size", lexicon.SIZE_WORDS), ("fill", lexicon.FILL_WORDS), ("shape", lexicon.NOUNS)):
        for concept, synonyms in table.items():
            assert {lexicon.PHRASES[word] for word in synonyms} == {(kind, concept)}
    for cell, (short, long) in enumerate(zip(lexicon.SHORT, lexicon.LONG, strict=True)):
        assert {lexicon.PHRASES[phrase] for phrase in (*short, *long)} == {("place", cell)}


@pytest.mark.parametrize(
    ("noun", "many"), [("star", "stars"), ("box", "boxes"), ("cross", "crosses"), ("disc", "discs")]
)
def test_plural(noun: str, many: str) -> None:
    assert lexicon.plural(noun) == many


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("circle", ("circle", "disc")),
        ("cyan", ("cyan", "turquoise")),
        ("top left", ("top left", "upper left")),
        ("center", ("center", "middle")),
        ("yes", ("yes",)),
        ("3", ("3",)),
    ],
)
def test_variants_of_answers(answer: str, words: tuple[str, ...]) -> None:
    assert lexicon.variants(answer) == words
