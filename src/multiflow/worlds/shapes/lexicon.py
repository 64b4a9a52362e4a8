"""The words of the Shapes language: every concept with its synonyms, and the table that reads them back."""

from __future__ import annotations

from multiflow.worlds.shapes.scene import GRID

NOUNS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "diamond": ("diamond",),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
    "moon": ("moon", "crescent"),
}
COLOUR_WORDS = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
}
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
FILL_WORDS = {"solid": ("solid", "filled"), "outline": ("outlined", "hollow"), "striped": ("striped", "banded")}
BACKGROUND_WORDS = {
    "white": ("white",),
    "grey": ("grey",),
    "black": ("black",),
    "gradient": ("shaded",),
    "checked": ("checked",),
    "speckled": ("speckled", "spotted"),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
#: Names of the nine cells, row by row: the answers to "where".
PLACES = (
    "top left",
    "top center",
    "top right",
    "center left",
    "center",
    "center right",
    "bottom left",
    "bottom center",
    "bottom right",
)
#: Short adverbials for the nine cells.
SHORT = (
    ("top left", "upper left"),
    ("top center", "upper center"),
    ("top right", "upper right"),
    ("center left", "middle left"),
    ("in the center", "in the middle"),
    ("center right", "middle right"),
    ("bottom left", "lower left"),
    ("bottom center", "lower center"),
    ("bottom right", "lower right"),
)
#: Long adverbials for the nine cells.
LONG = (
    ("at the top left", "in the upper left corner"),
    ("at the top", "at the top center"),
    ("at the top right", "in the upper right corner"),
    ("on the left", "at the middle left"),
    ("in the center", "in the middle"),
    ("on the right", "at the middle right"),
    ("at the bottom left", "in the lower left corner"),
    ("at the bottom", "at the bottom center"),
    ("at the bottom right", "in the lower right corner"),
)
OPENINGS = ("a picture of", "an image of", "there is", "we see")


def plural(noun: str) -> str:
    """Return the plural of a noun of the lexicon: "boxes", "crosses", "stars"."""
    return noun + ("es" if noun[-1] in "sx" else "s")


def _phrases() -> dict[str, tuple[str, str | int]]:
    table: dict[str, tuple[str, str | int]] = {"a": ("number", 1), "an": ("number", 1), "the": ("reference", 1)}
    for kind, words in (("size", SIZE_WORDS), ("fill", FILL_WORDS), ("colour", COLOUR_WORDS), ("relation", RELATIONS)):
        table.update({word: (kind, value) for value, synonyms in words.items() for word in synonyms})
    for value, synonyms in NOUNS.items():
        table.update({form: ("shape", value) for word in synonyms for form in (word, plural(word))})
    for value, synonyms in BACKGROUND_WORDS.items():
        table.update({f"on a {word} background": ("background", value) for word in synonyms})
    table.update({word: ("number", value) for value, word in NUMBERS.items()})
    for cell in range(GRID**2):
        table.update(dict.fromkeys((*SHORT[cell], *LONG[cell]), ("place", cell)))
    table.update(dict.fromkeys(OPENINGS, ("opening", "")) | {"there are": ("opening", "")})
    return table


#: Every phrase that means something in a caption -> (kind, value); of several at one place the longest counts.
PHRASES = _phrases()


def variants(answer: str) -> tuple[str, ...]:
    """Return all words for the shape, colour or place that an answer names, the answer first.

    >>> variants("circle"), variants("top left"), variants("yes")
    (('circle', 'disc'), ('top left', 'upper left'), ('yes',))
    """
    if answer in PLACES:
        return answer, SHORT[PLACES.index(answer)][1].removeprefix("in the ")
    return NOUNS.get(answer) or COLOUR_WORDS.get(answer) or (answer,)
