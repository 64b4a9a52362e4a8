"""Test scenes with what dense and sparse models find for them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping

from multiflow.report.html import Markup, join, tag
from multiflow.report.palette import Look
from multiflow.report.svg import name
from multiflow.report.values import Demo, Example, Find


def example_card(demo: Demo, example: Example, styles: Mapping[str, Look]) -> Markup:
    """Return a scene, the picture each model finds for its caption and the caption each finds for its picture."""
    truth = demo.captions[example.scene]
    found = [_found_picture(demo, example, find, styles[find.method]) for find in example.finds]
    said = [_found_caption(demo, example, find, styles[find.method]) for find in example.finds]
    return tag(
        "article",
        tag(
            "div",
            _picture(demo, example.scene, 3, f"test scene {example.scene}: {truth}"),
            tag("div", tag("p", f"Scene {example.scene}", class_="overline"), tag("blockquote", truth)),
            class_="scene",
        ),
        tag("h4", "Caption \N{RIGHTWARDS ARROW} picture found"),
        tag("ul", found, class_="found"),
        tag("h4", "Picture \N{RIGHTWARDS ARROW} caption found"),
        tag("ul", said, class_="said"),
        class_="card",
    )


def _found_picture(demo: Demo, example: Example, find: Find, look: Look) -> Markup:
    right = find.picture == example.scene
    text = "the right picture" if right else demo.captions[find.picture]
    return tag(
        "li",
        tag("div", _picture(demo, find.picture, 1.6, f"{find.method} finds {text}"), _verdict(right), class_="thumb"),
        name(find.method, look),
        class_="right" if right else "wrong",
        title=f"{find.method}: {text}",
    )


def _found_caption(demo: Demo, example: Example, find: Find, look: Look) -> Markup:
    right = find.caption == example.scene
    text = "the right caption" if right else mark_changes(demo.captions[find.caption], demo.captions[example.scene])
    return tag("li", name(find.method, look), _verdict(right), tag("span", text), class_="right" if right else "wrong")


def mark_changes(found: str, truth: str) -> Markup:
    """Return a caption with the words marked that the right one does not have.

    >>> mark_changes("a red star", "a red disc")
    'a red <u>star</u>'
    """
    known = set(re.findall(r"\w+", truth.lower()))
    parts = re.split(r"(\w+)", found)  # words at the odd places
    return join([tag("u", part) if i % 2 and part.lower() not in known else part for i, part in enumerate(parts)])


def _picture(demo: Demo, scene: int, scale: float, alt: str) -> Markup:
    side = round(demo.image_size * scale)
    data = b64encode(demo.pictures[scene]).decode()
    return tag("img", src=f"data:image/png;base64,{data}", alt=alt, width=side, height=side)


def _verdict(right: bool) -> Markup:
    sign, word = ("\N{CHECK MARK}", "right") if right else ("\N{MULTIPLICATION X}", "wrong")
    return tag("span", sign, class_="verdict-mark", role="img", aria_label=word)
