from __future__ import annotations

from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from itertools import combinations, pairwise

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.worlds.shapes import STYLES, Object, Scene, make_scenes, split_of
from multiflow.worlds.shapes.scene import FILLS, SIZES, relation

RED = Object("star", "red", "small", "solid", x=0.2, y=0.2, radius=0.1)
BLUE = Object("circle", "blue", "large", "striped", x=0.8, y=0.5, radius=0.17)


@pytest.mark.parametrize(
    ("x", "y", "cell"), [(0.0, 0.0, 0), (0.34, 0.0, 1), (0.99, 0.3, 2), (0.5, 0.5, 4), (1.0, 1.0, 8), (0.1, 0.7, 6)]
)
def test_cells_run_row_by_row(x: float, y: float, cell: int) -> None:
    assert replace(RED, x=x, y=y).cell == cell


def test_box_is_twice_the_radius() -> None:
    assert BLUE.box == (0.8, 0.5, 0.34, 0.34)


def test_identity_leaves_out_all_but_objects_and_rough_places() -> None:
    scene = Scene((RED, BLUE), "grey", "plain", seed=1)
    same = Scene((BLUE, replace(RED, x=0.25, radius=0.11)), "black", "chalk", seed=2, contrast="fill")
    assert scene.identity == same.identity
    assert hash(scene.identity) == hash(same.identity)


@pytest.mark.parametrize(
    "change", [{"shape": "moon"}, {"colour": "pink"}, {"size": "large"}, {"fill": "outline"}, {"x": 0.5}]
)
def test_identity_tells_objects_and_places(change: dict) -> None:
    assert Scene((RED,), "grey", "plain", 1).identity != Scene((replace(RED, **change),), "grey", "plain", 1).identity


def test_relation_follows_the_longer_axis() -> None:
    assert relation(RED, BLUE) == "left"
    assert relation(BLUE, RED) == "right"
    assert relation(RED, replace(BLUE, x=0.3)) == "above"
    assert relation(replace(BLUE, x=0.3), RED) == "below"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "sqare"}, "unknown shape 'sqare'.*did you mean 'square'"),
        ({"colour": "bleu"}, "unknown colour 'bleu'"),
        ({"size": "huge"}, "unknown size 'huge'; known: small, large"),
        ({"fill": "strip"}, "unknown fill 'strip'"),
    ],
)
def test_unknown_attributes(change: dict, message: str) -> None:
    with pytest.raises(MultiflowError, match=message):
        replace(RED, **change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((RED,), "grey", "chalky", 0), "unknown style 'chalky'.*did you mean 'chalk'"),
        (((RED,), "white", "chalk", 0), "unknown background of style chalk 'white'"),
        (((), "grey", "plain", 0), "a scene of 0 objects was given"),
        (((RED,) * 5, "grey", "plain", 0), "a scene of 5 objects was given, 1 to 4 were expected"),
    ],
)
def test_impossible_scenes(values: tuple, message: str) -> None:
    with pytest.raises(MultiflowError, match=message):
        Scene(*values)


SPLITS = ("train", "val", "test")


@pytest.mark.parametrize("max_objects", [1, 2, 3, 4])
@pytest.mark.parametrize("split", SPLITS)
def test_a_scene_depends_on_its_number_only(split: str, max_objects: int) -> None:
    every = make_scenes(split, 40, seed=3, max_objects=max_objects)
    for start in (0, 1, 7, 16, 33):
        assert make_scenes(split, 5, seed=3, start=start, max_objects=max_objects) == every[start : start + 5]


def test_scenes_stay_what_they_are() -> None:
    """Published figures stand on these very scenes: a change of the sampler needs a new figure here, and there."""
    scenes = [s for split in SPLITS for style in STYLES for s in make_scenes(split, 64, style=style)]
    text = repr([(s.identity, s.background, s.seed, s.contrast, [f"{o.x:.9f}" for o in s.objects]) for s in scenes])
    assert blake2b(text.encode(), digest_size=8).hexdigest() == "b16dacc8620ea567"


def test_seed_split_style_and_number_all_matter() -> None:
    base = make_scenes("train", 8)
    others = [make_scenes("train", 8, seed=1), make_scenes("train", 8, style="chalk"), make_scenes("train", 8, start=8)]
    for other in others:
        assert not {s.identity for s in base} & {s.identity for s in other}


def test_no_identity_is_in_two_splits() -> None:
    seen = {split: set() for split in SPLITS}
    for split in SPLITS:
        for style in STYLES:
            for seed, most in ((0, 4), (1, 1), (2, 3)):
                scenes = make_scenes(split, 120, seed=seed, style=style, max_objects=most)
                assert {split_of(s.identity) for s in scenes} == {split}
                seen[split] |= {s.identity for s in scenes}
    for a, b in combinations(SPLITS, 2):
        assert not seen[a] & seen[b]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("split", ["val", "test"])
def test_the_first_500_are_different(split: str, style: str) -> None:
    assert len({s.identity for s in make_scenes(split, 500, style=style)}) == 500


def test_one_object_scenes_come_once_before_any_comes_twice() -> None:
    alone = [s for s in make_scenes("test", 320, max_objects=1) if not s.contrast]
    assert len({s.identity for s in alone}) == len(alone) == 240


def test_objects_keep_clear_of_each_other_and_of_the_border() -> None:
    for scene in make_scenes("train", 400) + make_scenes("test", 400, style="chalk"):
        for o in scene.objects:
            assert o.radius <= min(o.x, o.y, 1 - o.x, 1 - o.y)
        for a, b in combinations(scene.objects, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius
            assert a.cell != b.cell


def test_sizes_and_places_are_plain_to_see() -> None:
    objects = [o for s in make_scenes("train", 800) for o in s.objects]
    small, large = ([o.radius for o in objects if o.size == size] for size in SIZES)
    assert min(small) >= 0.1
    assert max(small) * 1.35 < min(large)
    for o in objects:
        assert min(abs(v - edge) for v in (o.x, o.y) for edge in (1 / 3, 2 / 3)) > 0.02


def test_one_to_four_objects_all_attributes_evenly() -> None:
    scenes = make_scenes("train", 1600)
    counts = Counter(len(s.objects) for s in scenes)
    assert set(counts) == {1, 2, 3, 4}
    assert min(counts.values()) > 150
    for attribute, kinds in (("shape", 8), ("colour", 8), ("fill", len(FILLS)), ("size", 2), ("cell", 9)):
        seen = Counter(getattr(o, attribute) for s in scenes for o in s.objects)
        assert len(seen) == kinds
        assert max(seen.values()) < 2 * min(seen.values())
    assert Counter(s.background for s in scenes).most_common()[-1][1] > 200


def _twins(split: str, count: int, style: str = "plain", **options: int) -> list[tuple[Scene, Scene]]:
    scenes = make_scenes(split, count, style=style, **options)
    return [(a, b) for i, (a, b) in enumerate(pairwise(scenes)) if i % 8 == 0]


@pytest.mark.parametrize("split", SPLITS)
def test_a_quarter_of_the_scenes_has_a_distractor(split: str) -> None:
    scenes = make_scenes(split, 400)
    assert sum(bool(s.contrast) for s in scenes) == 100
    for a, b in _twins(split, 400):
        assert a.contrast == b.contrast != ""
        assert (a.seed, a.background) == (b.seed, b.background)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_twins_differ_by_one_thing(split: str, style: str) -> None:
    seen = Counter()
    for a, b in _twins(split, 960, style):
        seen[a.contrast] += 1
        only_a = list((Counter(a.identity) - Counter(b.identity)).elements())
        only_b = list((Counter(b.identity) - Counter(a.identity)).elements())
        if a.contrast == "count":
            (more,) = only_a + only_b
            assert more[:4] in {o[:4] for o in (b if only_a else a).identity}
        elif a.contrast == "swap":
            assert len(only_a) == len(only_b) == 2
            assert sorted(o[:4] for o in only_a) == sorted(o[:4] for o in only_b)
            assert {o[4] for o in only_a} == {o[4] for o in only_b}
        else:
            (x,), (y,) = only_a, only_b
            kinds = ("shape", "colour", "size", "fill", "place")
            assert [k for k, u, v in zip(kinds, x, y, strict=True) if u != v] == [a.contrast]
    assert set(seen) == {"shape", "colour", "size", "fill", "place", "swap", "count"}
    assert min(seen.values()) >= 2


def test_one_object_twins_differ_in_an_attribute() -> None:
    assert {a.contrast for a, _ in _twins("train", 400, max_objects=1)} == {"shape", "colour", "size", "fill"}


def test_none_are_asked_for() -> None:
    assert make_scenes("val", 0) == []


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (("tset", 1), {}, "unknown split 'tset'.*did you mean 'test'"),
        (("test", 1), {"style": "plane"}, "unknown style 'plane'.*did you mean 'plain'"),
        (("test", -1), {}, "count=-1"),
        (("test", 1), {"start": -2}, "start=-2"),
        (("test", 1), {"seed": -3}, "seed=-3"),
        (("test", 1), {"max_objects": 5}, "max_objects=5 was given, 1 to 4"),
    ],
)
def test_bad_arguments(values: tuple, options: dict, message: str) -> None:
    with pytest.raises(MultiflowError, match=message):
        make_scenes(*values, **options)
