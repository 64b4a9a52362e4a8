from __future__ import annotations

from base64 import b64encode
from xml.etree import ElementTree

from multiflow.report.examples import example_card, mark_changes
from multiflow.report.palette import DENSE, looks


def test_a_card_shows_what_every_model_finds(make_demo):
    demo = make_demo()
    card = example_card(demo, demo.examples[0], {"dense": DENSE, **looks(demo.methods)})
    root = ElementTree.fromstring(card)
    pictures, captions = root.findall("ul")
    assert [item.get("class") for item in pictures] == ["right", "right", "right", "wrong"]
    assert [item.get("class") for item in captions] == ["right", "right", "wrong", "wrong"]
    sources = [image.get("src") for image in pictures.iter("img")]
    red, blue = (f"data:image/png;base64,{b64encode(demo.pictures[i]).decode()}" for i in (3, 7))
    assert sources == [red, red, red, blue]
    assert all(image.get("alt") for image in root.iter("img"))
    assert [mark.get("aria-label") for mark in captions.iter("span") if mark.get("role")] == ["right"] * 2 + [
        "wrong"
    ] * 2


def test_only_words_that_the_right_caption_lacks_are_marked():
    assert mark_changes("A red star, left", "a blue star left") == "A <u>red</u> star, left"
    assert mark_changes("<b>", "x") == "&lt;<u>b</u>&gt;"
