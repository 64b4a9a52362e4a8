from __future__ import annotations

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data.dataset import BrokenItem
from multiflow.data.images import choose_split, load_image, locate, texts_of
from tests.data.worlds import write_images


def test_images_are_sought_around_the_file(tmp_path):
    for place in ("lists", "lists/images", ".", "images"):
        root = tmp_path / place
        write_images(root, ["x/a.png"])
        assert locate([["x/a.png", "x/gone.png"]], tmp_path / "lists", None, "'f'") == [
            str(root / "x/a.png"),
            str(root / "x/gone.png"),
        ]
        (root / "x/a.png").unlink()


def test_a_given_folder_is_the_only_one(tmp_path):
    write_images(tmp_path, ["a.png"])
    (tmp_path / "other").mkdir()
    with pytest.raises(MultiflowError, match="none of the 1 images .*'a.png'; looked in"):
        locate([["a.png"]], tmp_path, tmp_path / "other", "'f'")
    with pytest.raises(MultiflowError, match=r"image folder '.*gone' does not exist"):
        locate([["a.png"]], tmp_path, tmp_path / "gone", "'f'")


def test_paths_that_leave_the_folder_are_refused(tmp_path):
    write_images(tmp_path, ["data/a.png", "secret.png"])
    for name in ("../secret.png", "x/../../secret.png", str(tmp_path / "secret.png")):
        for names in ([name], ["a.png", name]):
            with pytest.raises(MultiflowError, match=r"outside of the data folder"):
                locate([names], tmp_path / "data", tmp_path / "data", "'f'")
    inside = [["x/../a.png"], [str(tmp_path / "data" / "a.png")]]
    for names in inside:
        assert locate([names], tmp_path / "data", None, "'f'") == [str(tmp_path / "data" / "a.png")]


def test_the_first_manner_that_exists_is_taken(tmp_path):
    write_images(tmp_path, ["b.png"])
    assert locate([["x/b.png"], ["b.png"], ["b.png"]], tmp_path, None, "'f'") == [str(tmp_path / "b.png")]


def test_images_that_cannot_be_opened(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(BrokenItem, match=r"not an image file"):
        load_image(str(tmp_path / "a.png"), "a.png")
    with pytest.raises(BrokenItem, match=r"No such file"):
        load_image(str(tmp_path / "b.png"), "b.png")


def test_texts():
    assert texts_of(" a ") == ("a",)
    assert texts_of(["a", " ", "b"]) == ("a", "b")
    assert texts_of(None) == ()


def test_splits():
    assert choose_split(None, ["val", "train"], "'f'") == "train"
    assert choose_split("val", ["val", "train"], "'f'") == "val"
    with pytest.raises(MultiflowError, match=r"split 'tset' is unknown in 'f'.*train, test; did you mean 'test'"):
        choose_split("tset", ["train", "test"], "'f'")
    with pytest.raises(MultiflowError, match=r"no split was given"):
        choose_split(None, ["val", "test"], "'f'")
