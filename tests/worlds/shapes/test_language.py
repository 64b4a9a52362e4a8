from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest

from multiflow.worlds.shapes import STYLES, Object, Scene, describe, make_scenes
from multiflow.worlds.shapes.language import article
from multiflow.worlds.shapes.lexicon import NOUNS, plural
from multiflow.worlds.shapes.oracle import score

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
