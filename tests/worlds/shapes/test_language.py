from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from multiflow.worlds.shapes import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    SHAPES,
    SIZES,
    STYLES,
    VOCABULARY,
    Object,
    Scene,
    describe,
    language,
    make_scenes,
    questions,
    regions,
)
from multiflow.worlds.shapes.language import KINDS, NOUNS, PHRASES, PLACES, RELATIONS, article, plural
from multiflow.worlds.shapes.oracle import parse, score

SINGULARS = [noun for nouns in NOUNS.values() for noun in nouns]
PLURALS = [plural(noun) for noun in SINGULARS]
NOUN = "|".join(PLURALS + SINGULARS)


def two(**second: str) -> Scene:
    first = Object("circle", "red", "small", "solid", x=0.2, y=0.2, radius=0.11)
    look = {"shape": "circle", "colour": "red", "size": "small", "fill": "solid"} | second
    return Scene((first, Object(**look, x=0.8, y=0.8, radius=0.11)), "grey", "plain", seed=4)


@pytest.mark.parametrize("style", STYLES)
def test_five_different_captions_of_lower_case_words(style: str) -> None:
    for scene in make_scenes("train", 300, style=style):
        captions = describe(scene)
        assert len(set(captions)) == 5
        for caption in captions:
            assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption)


def test_captions_depend_on_the_scene_alone() -> None:
    for scene in make_scenes("val", 20):
        assert describe(scene, 3) == describe(scene, 5)[:3] == describe(scene)[:3]
    assert describe(make_scenes("val", 1)[0], 0) == []


def test_more_captions_than_there_are_wordings_repeat() -> None:
    captions = describe(make_scenes("val", 3)[2], 3000)
    assert len(captions) == 3000 > len(set(captions)) > 50


def test_lengths_suit_training() -> None:
    lengths = Counter(len(c.split()) for s in make_scenes("train", 1000) for c in describe(s))
    assert max(lengths) <= 30
    assert sum(n for length, n in lengths.items() if 8 <= length <= 26) > 0.97 * lengths.total()
    assert sum(length * n for length, n in lengths.items()) < 20 * lengths.total()


def test_articles_and_numbers_agree() -> None:
    for scene in make_scenes("train", 600):
        for caption in describe(scene):
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)
            objects = re.sub("^(a picture of|an image of) ", "", caption)
            for number, noun in re.findall(rf"\b(an?|two|three|four)\b(?:(?! (?:{NOUN})\b) \w+)* ({NOUN})\b", objects):
                assert (noun in PLURALS) == (number in ("two", "three", "four"))
            assert ("there are" in caption) <= bool(re.match(r"there are (two|three|four)", caption))
    assert article("orange star") == "an orange star"
    assert article("big star") == "a big star"


def test_like_objects_are_counted() -> None:
    assert all("two" in c for c in describe(two(), 20))
    mixed = describe(two(size="large"), 40)
    assert any("two" in c for c in mixed)  # where the size is not told
    assert any("two" not in c for c in mixed)
    assert not any("two" in c for c in describe(two(shape="star"), 20))


@pytest.mark.parametrize("style", STYLES)
def test_every_caption_tells_twins_apart(style: str) -> None:
    scenes = make_scenes("test", 480, style=style)
    twins = [(a, b) for i, (a, b) in enumerate(pairwise(scenes)) if i % 8 == 0]
    for a, b in [*twins, *((b, a) for a, b in twins)]:
        for caption in describe(a):
            assert score(caption, a) > 0 > score(caption, b), caption


def test_all_the_forms_occur() -> None:
    captions = [c for s in make_scenes("train", 400) for c in describe(s)]
    forms = {
        "opening": r"^(a picture of|an image of|there is|there are|we see) ",
        "background": r" on a \w+ background$",
        "relation of two": r"^[^,]* (left of|right of|above|over|below|under) an? ",
        "relation in a list": r", the [a-z ]+ (left of|right of|above|over|below|under) the ",
        "count": r"\b(two|three) ",
        "long place": r" (at|in|on) the ",
        "short place": r"[a-z] (top|upper|lower|bottom|center|middle) (left|right)",
        "size": r"\b(small|little|large|big)\b",
        "fill": r"\b(solid|filled|outlined|hollow|striped|banded)\b",
    }
    for form, pattern in forms.items():
        assert sum(bool(re.search(pattern, c)) for c in captions) > 0.03 * len(captions), form


def test_contrast_is_told_and_other_details_may_be_left_out() -> None:
    scene = two(shape="star")
    sized = Scene(scene.objects, "grey", "plain", 4, contrast="size")
    assert all(re.search("small|little", c) for c in describe(sized, 30))
    assert not all(re.search("small|little", c) for c in describe(scene, 30))


def test_every_concept_has_words_and_no_word_has_two_meanings() -> None:
    tables = (
        (language.NOUNS, SHAPES),
        (language.COLOUR_WORDS, COLOURS),
        (language.SIZE_WORDS, SIZES),
        (language.FILL_WORDS, FILLS),
        (language.BACKGROUND_WORDS, BACKGROUNDS),
    )
    for table, concepts in tables:
        assert tuple(table) == concepts
        words = [word for synonyms in table.values() for word in synonyms]
        assert len(words) == len(set(words))
    objects = [w for table, _ in tables[:4] for synonyms in table.values() for w in synonyms]
    assert len(objects) == len(set(objects))


def test_the_table_reads_every_word_back() -> None:
    for kind, table in (("size", language.SIZE_WORDS), ("fill", language.FILL_WORDS), ("shape", language.NOUNS)):
        for concept, synonyms in table.items():
            assert {language.PHRASES[word] for word in synonyms} == {(kind, concept)}
    for cell, (short, long) in enumerate(zip(language.SHORT, language.LONG, strict=True)):
        assert {language.PHRASES[phrase] for phrase in (*short, *long)} == {("place", cell)}


@pytest.mark.parametrize(
    ("noun", "many"), [("star", "stars"), ("box", "boxes"), ("cross", "crosses"), ("disc", "discs")]
)
def test_plural(noun: str, many: str) -> None:
    assert language.plural(noun) == many


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
    assert language.variants(answer) == words


def test_a_phrase_and_a_box_for_every_object() -> None:
    for scene in make_scenes("train", 200):
        found = regions(scene)
        assert found == regions(scene)
        for obj, (phrase, box) in zip(scene.objects, found, strict=True):
            assert box == obj.box
            (mention,) = parse(phrase).mentions
            facts = {"shape": obj.shape, "colour": obj.colour, "size": obj.size, "fill": obj.fill}
            assert mention.facts.items() >= facts.items()
            assert mention.facts.get("cell", obj.cell) == obj.cell
            assert len(phrase.split()) <= 10


def test_phrases_point_at_one_object() -> None:
    star = {"shape": "star", "colour": "red", "size": "small", "fill": "solid", "radius": 0.11}
    alike = Scene((Object(**star, x=0.2, y=0.2), Object(**star, x=0.8, y=0.2)), "grey", "plain", seed=1)
    (one, _), (other, _) = regions(alike)
    assert parse(one).mentions[0].facts["cell"] == 0
    assert parse(other).mentions[0].facts["cell"] == 2
    (alone, _) = regions(Scene(alike.objects[:1], "grey", "plain", seed=1))[0]
    assert "cell" not in parse(alone).mentions[0].facts


SCENE = Scene(
    (
        Object("circle", "red", "small", "solid", x=0.2, y=0.2, radius=0.11),
        Object("circle", "blue", "small", "solid", x=0.8, y=0.2, radius=0.11),
        Object("star", "red", "large", "striped", x=0.5, y=0.8, radius=0.17),
    ),
    "grey",
    "plain",
    seed=0,
)


def concept(word: str, kind: str) -> str | None:
    """What a word of a question means, or None where it is of another kind."""
    found, value = PHRASES.get(word, ("", ""))
    return str(value) if found == kind else None


def matching(text: str, scene: Scene) -> list[Object]:
    """The objects that have every colour, shape and place named in a text."""
    shapes, colours = ([c for w in text.split() if (c := concept(w, kind))] for kind in ("shape", "colour"))
    place = re.search(r" (?:at|in) the ([a-z ]+)$", text)
    return [
        o
        for o in scene.objects
        if all(o.shape == s for s in shapes)
        and all(o.colour == c for c in colours)
        and (place is None or PLACES[o.cell] == place[1])
    ]


def solve(question: str, scene: Scene) -> str:
    """Answer a question from its words, written apart from the generator."""
    text = question.removesuffix("?")
    if text == "how many objects are there":
        return str(len(scene.objects))
    if text.startswith("how many"):
        return str(len(matching(text, scene)))
    if text.startswith("is there"):
        return "yes" if matching(text, scene) else "no"
    for relation, phrases in RELATIONS.items():
        for phrase in phrases:
            if text.startswith("is the ") and f" {phrase} the " in text:
                first, second = text.split(f" {phrase} the ")
                (a,), (b,) = matching(first, scene), matching(second, scene)
                true = {"left": a.x < b.x, "right": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
                return "yes" if true[relation] else "no"
    (obj,) = matching(text, scene)
    return PLACES[obj.cell] if text.startswith("where") else obj.colour if "what color" in text else obj.shape


@pytest.mark.parametrize("style", ["plain", "chalk"])
def test_answers_are_right_and_unambiguous(style: str) -> None:
    seen = Counter()
    for scene in make_scenes("train", 400, style=style):
        for question, answer, kind in questions(scene):
            assert solve(question, scene) == answer, question
            seen[kind] += 1
    assert set(seen) == set(KINDS)
    assert min(seen.values()) > 400


def test_questions_depend_on_the_scene_alone() -> None:
    for scene in make_scenes("val", 20):
        asked = questions(scene)
        assert asked == questions(scene)
        assert len({q.question for q in asked}) >= len(asked) - 2


def test_answers_are_of_their_kind() -> None:
    allowed = {"yes/no": {"yes", "no"}, "count": set("01234"), "colour": set(COLOURS), "shape": set(SHAPES)}
    allowed["where"] = set(PLACES)
    for scene in make_scenes("val", 100):
        for question, answer, kind in questions(scene):
            assert answer in allowed[kind]
            assert question.endswith("?")
            assert set(question.removesuffix("?").split()) <= set(VOCABULARY)


def test_yes_and_no_are_balanced() -> None:
    answers = Counter(q.answer for s in make_scenes("train", 1000) for q in questions(s) if q.kind == "yes/no")
    assert 0.45 < answers["yes"] / answers.total() < 0.55


def test_nothing_is_asked_that_the_scene_leaves_open() -> None:
    asked = {q.question for seed in range(50) for q in questions(Scene(SCENE.objects, "grey", "plain", seed))}
    assert not {"what color is the circle?", "where is the circle?", "what shape is the red object?"} & asked
    assert {"what color is the star?", "what shape is the blue object?", "where is the star?"} <= asked


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
