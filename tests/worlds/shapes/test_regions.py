from __future__ import annotations

from multiflow.worlds.shapes import Object, Scene, make_scenes, regions
from multiflow.worlds.shapes.oracle import parse


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
