"""The language of Shapes: words, captions of scenes and of regions, questions with one right answer.

    caption    = [opening] item ("," item)* "and" item ["," "the" object relation "the" object] ["on a ... background"]
               | [opening] object relation object ["on a ... background"]
    item       = number [size] [fill] colour shape [place ("and" place)*]

Every caption names all objects with shape and colour; size, fill and place as many as keep it near 26 words at most,
and always the one that sets the scene apart from its distractor. Objects that would be named alike are counted
("two red discs"). ``oracle.py`` reads captions back.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from multiflow.worlds.shapes.scene import COLOURS, GRID, SHAPES, Object, Scene, pick, relation

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
KINDS = ("yes/no", "count", "colour", "shape", "where")
#: The words of questions and answers that captions do not use.
FRAMES = ("how many objects are there", "is there", "what color shape is the object", "where", "yes no", "0 1 2 3 4")

Box = tuple[float, float, float, float]
_ROOM = 20  # words that leave room for an opening or for the background


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


class _Plan(NamedTuple):
    """What a caption tells beside shape and colour, and how."""

    size: bool
    fill: bool
    place: str  # "" | "long" ("at the top left") | "short" ("top left")
    relation: bool


def describe(scene: Scene, count: int = 5) -> list[str]:
    """Return ``count`` captions of a scene, a pure function of the scene; distinct as far as the grammar goes.

    >>> from multiflow.worlds.shapes import Object, Scene
    >>> describe(Scene((Object("star", "red", "small", "solid", 0.5, 0.2, 0.1),), "grey", "plain", seed=3), count=1)
    ['a small filled red star at the top center on a grey background']
    """
    rng = Random(scene.seed ^ 0x5EED)
    captions: list[str] = []
    for _ in range(4 * count):
        if len(captions) == count:
            return captions
        caption = _caption(scene, rng)
        if caption not in captions:
            captions.append(caption)
    return captions + [_caption(scene, rng) for _ in range(count - len(captions))]


def name(obj: Object, rng: Random, *, size: bool = True, fill: bool = True, count: int = 1) -> str:
    """Return the words for an object without article: "large striped red disc"."""
    noun = pick(rng, NOUNS[obj.shape])
    words = [pick(rng, COLOUR_WORDS[obj.colour]), noun if count == 1 else plural(noun)]
    if fill:
        words.insert(0, pick(rng, FILL_WORDS[obj.fill]))
    if size:
        words.insert(0, pick(rng, SIZE_WORDS[obj.size]))
    return " ".join(words)


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _caption(scene: Scene, rng: Random) -> str:
    objects = sorted(scene.objects, key=lambda _: rng.random())
    plan = _plan(len(objects), scene.contrast, rng)
    looks = [_look(o, plan) for o in objects]
    if plan.relation:
        pair = _tellable(objects, looks)
        if pair is None:
            plan = plan._replace(place="short" if len(objects) > 2 else "long", relation=False)
        elif len(objects) == 2:
            a, b = (article(name(o, rng, size=plan.size, fill=plan.fill)) for o in objects)
            text = f"{a} {pick(rng, RELATIONS[relation(*objects)])} {b}"
            return _finish(text, scene, rng, plural_first=False)
    items = _items(objects, looks, plan, rng)
    text = items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
    if plan.relation and pair:
        a, b = (o.shape if _alone(o, objects) else f"{o.colour} {o.shape}" for o in pair)
        text += f", the {a} {pick(rng, RELATIONS[relation(*pair)])} the {b}"
    return _finish(text, scene, rng, plural_first=looks.count(looks[0]) > 1)


def _plan(n: int, contrast: str, rng: Random) -> _Plan:
    """Choose what to tell of ``n`` objects: the fewer there are, the more of each."""
    both = n == 1 or contrast == "swap" or rng.random() < (0.6, 0.45, 0.4)[n - 2]
    size = both or (rng.random() < 0.5 if contrast not in ("size", "fill") else contrast == "size")
    fill = both or not size
    place, related, chance = "", False, rng.random()
    if n == 1 or contrast == "place" or (contrast == "swap" and n > 2):
        place = "long"
    elif n == 2:
        related = chance < 0.5
        place = "" if related or (both and chance < 0.6 and contrast != "swap") else "long"
    elif both:
        related = n == 3 and chance < 0.2
        place = "short" if 0.2 <= chance < 0.7 or contrast == "swap" else ""
    else:
        related = chance < 0.35
        place = "" if related else "long" if n == 3 and chance < 0.7 else "short"
    if n == 4 or (n == 3 and both):
        place = place and "short"
    return _Plan(size, fill, place, related)


def _look(obj: Object, plan: _Plan) -> tuple[str, str, str, str]:
    return obj.shape, obj.colour, obj.size if plan.size else "", obj.fill if plan.fill else ""


def _alone(obj: Object, objects: list[Object]) -> bool:
    return sum(o.shape == obj.shape for o in objects) == 1


def _tellable(objects: list[Object], looks: list[tuple[str, str, str, str]]) -> tuple[Object, Object] | None:
    """Return the first two objects that no other one is named like: in a pair by look, else by shape and colour."""
    keys: list[tuple[str, ...]] = [look if len(objects) == 2 else look[:2] for look in looks]
    single = [o for o, key in zip(objects, keys, strict=True) if keys.count(key) == 1]
    return (single[0], single[1]) if len(single) > 1 else None


def _items(objects: list[Object], looks: list[tuple[str, str, str, str]], plan: _Plan, rng: Random) -> list[str]:
    """Return one phrase for every look, with the number of objects that have it and their places."""
    places = LONG if plan.place == "long" else SHORT
    full = bool(plan.place) and plan.size and plan.fill and len(objects) == 4  # no room for articles
    items = []
    for look in dict.fromkeys(looks):
        members = [o for o, other in zip(objects, looks, strict=True) if other == look]
        count = len(members)
        text = name(members[0], rng, size=plan.size, fill=plan.fill, count=count)
        if count > 1:
            text = f"{NUMBERS[count]} {text}"
        elif not full:
            text = article(text)
        if plan.place:
            text += " " + " and ".join(pick(rng, places[o.cell]) for o in members)
        items.append(text)
    return items


def _finish(text: str, scene: Scene, rng: Random, *, plural_first: bool) -> str:
    """Add an opening, the background or nothing, as far as there is room."""
    chance = rng.random()
    if text.count(" ") >= _ROOM:
        return text
    if chance < 0.35:
        opening = pick(rng, OPENINGS)
        return f"{'there are' if plural_first and opening == 'there is' else opening} {text}"
    if chance < 0.55:
        return f"{text} on a {pick(rng, BACKGROUND_WORDS[scene.background])} background"
    return text


def regions(scene: Scene) -> list[tuple[str, Box]]:
    """Return a caption and a box (cx, cy, width, height; fractions of the image) for every object, in their order.

    Objects that look alike are told apart by their places.
    """
    rng = Random(scene.seed ^ 0xB0C5)
    looks = [(o.shape, o.colour, o.size, o.fill) for o in scene.objects]
    found = []
    for obj, look in zip(scene.objects, looks, strict=True):
        text = article(name(obj, rng))
        if looks.count(look) > 1:
            text += " " + pick(rng, LONG[obj.cell])
        found.append((text, obj.box))
    return found


class SceneQuestion(NamedTuple):
    """A question, its answer, and its kind (one of KINDS)."""

    question: str
    answer: str
    kind: str


def questions(scene: Scene) -> list[SceneQuestion]:
    """Return every question that the scene decides, a pure function of the scene; about 4 for each object."""
    rng = Random(scene.seed ^ 0xA5C)
    return [*_count(scene, rng), *_exists(scene, rng), *_relations(scene, rng), *_single(scene, rng)]


def _count(scene: Scene, rng: Random) -> Iterator[SceneQuestion]:
    total = len(scene.objects)
    yield SceneQuestion("how many objects are there?", str(total), "count")
    obj = pick(rng, scene.objects)
    n = sum(o.shape == obj.shape for o in scene.objects)
    yield SceneQuestion(f"how many {plural(pick(rng, NOUNS[obj.shape]))} are there?", str(n), "count")
    colour = obj.colour if rng.random() < 0.7 else pick(rng, COLOURS)
    n = sum(o.colour == colour for o in scene.objects)
    yield SceneQuestion(f"how many {pick(rng, COLOUR_WORDS[colour])} objects are there?", str(n), "count")


def _exists(scene: Scene, rng: Random) -> Iterator[SceneQuestion]:
    """One question to say yes to, and one to say no to that is right in either colour or shape."""
    obj = pick(rng, scene.objects)
    here = {(o.colour, o.shape) for o in scene.objects}
    wrong = [(c, obj.shape) for c in COLOURS] if rng.random() < 0.5 else [(obj.colour, s) for s in SHAPES]
    for (colour, shape), answer in (
        ((obj.colour, obj.shape), "yes"),
        (pick(rng, [look for look in wrong if look not in here]), "no"),
    ):
        thing = article(f"{pick(rng, COLOUR_WORDS[colour])} {pick(rng, NOUNS[shape])}")
        yield SceneQuestion(f"is there {thing}?", answer, "yes/no")


def _relations(scene: Scene, rng: Random) -> Iterator[SceneQuestion]:
    """Whether one object is left of, above ... another: the true relation or its opposite."""
    pairs = [(a, b) for a in scene.objects for b in scene.objects if a is not b and _known(a, b, scene)]
    if not pairs:
        return
    a, b = pick(rng, pairs)
    true = relation(a, b)
    asked = true if rng.random() < 0.5 else {"left": "right", "right": "left", "above": "below", "below": "above"}[true]
    text = f"is the {_reference(a, scene, rng)} {pick(rng, RELATIONS[asked])} the {_reference(b, scene, rng)}?"
    yield SceneQuestion(text, "yes" if asked == true else "no", "yes/no")


def _single(scene: Scene, rng: Random) -> Iterator[SceneQuestion]:
    """Colour, shape and place of the objects that can be pointed at without saying the answer."""
    for obj in scene.objects:
        noun = pick(rng, NOUNS[obj.shape])
        if _sole(scene, shape=obj.shape):
            yield SceneQuestion(f"what color is the {noun}?", obj.colour, "colour")
        if _sole(scene, colour=obj.colour):
            yield SceneQuestion(f"what shape is the {pick(rng, COLOUR_WORDS[obj.colour])} object?", obj.shape, "shape")
        if _known(obj, obj, scene):
            yield SceneQuestion(f"where is the {_reference(obj, scene, rng)}?", PLACES[obj.cell], "where")
    obj = pick(rng, scene.objects)
    asked, answer = ("color", obj.colour) if rng.random() < 0.5 else ("shape", obj.shape)
    kind = "colour" if asked == "color" else "shape"
    where = PLACES[obj.cell]
    yield SceneQuestion(f"what {asked} is the object {'in' if where == 'center' else 'at'} the {where}?", answer, kind)


def _sole(scene: Scene, **attributes: str) -> bool:
    return sum(all(getattr(o, k) == v for k, v in attributes.items()) for o in scene.objects) == 1


def _known(a: Object, b: Object, scene: Scene) -> bool:
    return all(_sole(scene, shape=o.shape, colour=o.colour) for o in (a, b))


def _reference(obj: Object, scene: Scene, rng: Random) -> str:
    """Name an object by shape alone where that is enough, else by colour and shape."""
    noun = pick(rng, NOUNS[obj.shape])
    if _sole(scene, shape=obj.shape) and rng.random() < 0.5:
        return noun
    return f"{pick(rng, COLOUR_WORDS[obj.colour])} {noun}"


#: Every word that captions, region captions, questions and answers can hold, sorted; punctuation is "," and "?".
VOCABULARY = tuple(sorted({word for phrase in (*PHRASES, *FRAMES, "and") for word in phrase.split()}))
