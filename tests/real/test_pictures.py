"""Readers of emoji, clip art and stamps, on a few drawn by the tests: what is usable, and why the rest is left out."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from benchmarks.real.folders import read_folder, write_folder
from benchmarks.real.pictures import Picture, is_test, on_white, read_clipart, read_emoji, read_stamps, texts_of
from multiflow.base.errors import MultiflowError
from multiflow.data import open_data

GROUPS = {"groups": {"0": "smileys-emotion", "1": "people-body", "2": "component", "5": "travel-places", "9": "flags"}}


def drawn(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8), mode: str = "RGBA") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGBA", size, (0, 0, 0, 0))
    ImageDraw.Draw(picture).rectangle((1, 1, size[0] - 2, size[1] - 2), fill=colour)
    picture.convert(mode).save(path, "PNG")
    return path


def entry(hexcode: str, label: str, tags: list[str] | None, group: int | None) -> dict:
    return {
        "hexcode": hexcode,
        "label": label,
        **({"tags": tags} if tags else {}),
        **({"group": group} if group else {}),
    }


@pytest.fixture
def emoji(tmp_path):
    """``f(entries, without, version)`` -> where data and two artists' pictures lie."""

    def make(entries: list[dict], without: tuple[str, ...] = (), version: str = "17.0.0"):
        data = tmp_path / "data"
        for name, content in {
            "package.json": {"version": version},
            "meta/groups.json": GROUPS,
            "en/data.json": entries,
        }.items():
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_text(json.dumps(content))
        for artist in ("one", "two"):
            drawn(tmp_path / artist / "img" / artist / "64" / "0000.png")
            for each in entries:
                if artist == "one" or each["hexcode"] not in without:
                    drawn(tmp_path / artist / "img" / artist / "64" / f"{each['hexcode'].lower()}.png")
        return data, {artist: tmp_path / artist for artist in ("one", "two")}

    return make


def test_an_emoji_has_the_pictures_of_all_artists(emoji):
    found = read_emoji(*emoji([entry("2764-FE0F", "red heart", ["love"], 1), entry("1F600", "grin", ["happy"], 1)]))
    assert [(one.id, one.text, one.tags, one.group) for one in found.found] == [
        ("1F600", "grin", ("happy",), "people-body"),
        ("2764-FE0F", "red heart", ("love",), "people-body"),
    ]
    assert {artist: path.name for artist, path in found.found[1].also.items()} == {
        "one": "2764-fe0f.png",
        "two": "2764-fe0f.png",
    }
    assert not found.left_out


@pytest.mark.parametrize(
    ("one", "without", "reason"),
    [
        (entry("1F600", "grin", ["happy"], 1), ("1F600",), "picture"),
        (entry("1F600", "grin", None, 1), (), "tags"),
        (entry("1F600", "", ["happy"], 1), (), "label"),
        (entry("1F1E6", "flag: Aa", ["a"], 9), (), "flags"),
        (entry("1F3FB", "light skin tone", ["skin"], 2), (), "component"),
        (entry("1F1E6", "regional indicator A", ["a"], None), (), "component"),
        (entry("1F550", "one o’clock", ["time"], 5), (), "clock"),
        (entry("1F471", "man: blond hair", ["blond"], 1), (), "man or woman"),
    ],
)
def test_an_emoji_that_is_of_no_use_is_counted(one, without, reason, emoji):
    found = read_emoji(*emoji([one], without))
    assert len(found) == 0
    (said,) = found.left_out
    assert reason in said


def test_data_of_another_version_are_refused(emoji):
    with pytest.raises(MultiflowError, match=r"16\.0\.3.*17"):
        read_emoji(*emoji([], version="16.0.3"))


def test_emoji_without_files_say_what_to_fetch(emoji, tmp_path):
    data, vendors = emoji([])
    with pytest.raises(MultiflowError, match="emoji-datasource-three"):
        read_emoji(data, {**vendors, "three": tmp_path / "three"})
    (data / "en" / "data.json").write_text("[{")
    with pytest.raises(MultiflowError, match=r"data\.json"):
        read_emoji(data, vendors)


SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
 xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><rdf:RDF><cc:Work>
<dc:title>{title}</dc:title><dc:subject><rdf:Bag>{tags}</rdf:Bag></dc:subject><cc:license rdf:resource="{licence}"/>
</cc:Work></rdf:RDF></metadata></svg>"""
PUBLIC = "http://web.resource.org/cc/PublicDomain"


@pytest.fixture
def art(tmp_path):
    """``f(name, title, tags, licence, colour)`` adds a drawing; ``f.read()`` reads them all."""

    def add(name: str, title: str, tags=("animal",), licence=PUBLIC, colour="red", group="animals"):
        svg = tmp_path / "svg" / group / f"{name}.svg"
        svg.parent.mkdir(parents=True, exist_ok=True)
        inside = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags)
        svg.write_text(SVG.format(title=title, tags=inside, licence=licence))
        drawn(tmp_path / "png" / group / f"{name}.png", colour)
        return svg

    add.read = lambda: read_clipart(tmp_path / "png", tmp_path / "svg")
    add.pngs = tmp_path / "png"
    return add


def test_clip_art_has_words_for_a_title_and_its_tags(art):
    art("cat", "clipart by Jo Doe - black_cat-02", ["animal", "", "hash(0x12ab)", "wild_cat"])
    (one,) = art.read().found
    assert (one.id, one.text, one.tags, one.group) == ("animals/cat", "black cat", ("animal", "wild cat"), "animals")
    assert list(texts_of(one)) == ["black cat", "black cat, animal, wild cat"]


@pytest.mark.parametrize(
    ("title", "how", "reason"),
    [
        ("cat", {"licence": "http://creativecommons.org/licenses/GPL/2.0/"}, "public domain"),
        ("cat", {"licence": ""}, "public domain"),
        ("France", {"tags": ["flag", "europe"]}, "flag"),
        ("Untitled drawing", {}, "tells something"),
        ("12", {}, "tells something"),
        ("a sign", {"group": "signs_and_symbols"}, "signs"),
    ],
)
def test_clip_art_that_is_of_no_use_is_counted(title, how, reason, art):
    art("one", title, **how)
    found = art.read()
    assert len(found) == 0
    assert reason in next(said for said, number in found.left_out.items() if number)


def test_the_same_picture_counts_once_and_a_shared_title_not_at_all(art):
    art("a", "cat", colour="red")
    art("b", "another cat", colour="red")
    for colour in ("green", "blue", "black", "yellow"):
        art(colour, "icon theme", colour=colour)
    found = art.read()
    assert [one.id for one in found.found] == ["animals/a"]
    assert {said: number for said, number in found.left_out.items() if number} == {
        "the same picture again": 1,
        "a title that more than 3 share": 4,
    }


def test_broken_clip_art_is_counted(art):
    art("a", "cat").write_text("<svg><metadata>")
    art("b", "dog")
    (art.pngs / "animals" / "b.png").unlink()
    art("c", "cow")
    (art.pngs / "animals" / "c.png").write_bytes(b"GIF89a")
    found = art.read()
    assert len(found) == 0
    assert sum(found.left_out.values()) == 3


def test_stamps_have_the_english_line_as_their_caption(tmp_path):
    for name, text in {
        "animals/frog": "A frog.\nde.utf8=Ein Frosch.\n",
        "animals/toad": "A frog.\n",
        "animals/none": "de.utf8=Ein Tier.\n",
        "animals/empty": "",
        "animals/drawing": "A drawing.\n",
    }.items():
        drawn(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "animals/drawing.png").unlink()
    found = read_stamps(tmp_path)
    assert [(one.id, one.text, one.group) for one in found.found] == [("animals/frog", "A frog", "animals")]
    assert sum(found.left_out.values()) == 4
    with pytest.raises(MultiflowError, match="tuxpaint-stamps-default"):
        read_stamps(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P", "L", "LA", "1"])
def test_any_picture_stands_on_white(mode, tmp_path):
    picture = on_white(drawn(tmp_path / "a.png", size=(20, 10), mode=mode), 16)
    assert (picture.size, picture.mode) == ((16, 16), "RGB")
    assert picture.getpixel((8, 1)) == (255, 255, 255)
    assert picture.getpixel((8, 8)) != (255, 255, 255)


def test_a_picture_that_is_none_or_far_too_large_is_refused(tmp_path):
    drawn(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "large.png").write_bytes(whole[:16] + struct.pack(">II", 60000, 60000) + whole[24:])
    (tmp_path / "cut.png").write_bytes(whole[:40])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("large", "cut", "text", "missing"):
        with pytest.raises(MultiflowError, match=name):
            on_white(tmp_path / f"{name}.png", 16)


def test_a_folder_is_read_back_and_by_the_product(tmp_path):
    one = Picture("a/b", drawn(tmp_path / "x.png"), "A, “cat”", ("pet", "animal"), "animals")
    table = tmp_path / "out" / "captions.csv"
    write_folder(table, [one])
    (back,) = read_folder(table)
    assert (back.id, back.text, back.tags, back.group) == ("a/b", "a, “cat”", ("pet", "animal"), "animals")
    assert back.path.is_file()
    data = open_data(str(table))
    assert len(data) == 1


def test_the_split_is_by_the_id_and_as_large_as_asked_for():
    ids = [str(number) for number in range(2000)]
    assert 0.17 < sum(map(is_test, ids)) / 2000 < 0.23
    assert not any(is_test(id, 0.0) for id in ids)
