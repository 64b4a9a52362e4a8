from __future__ import annotations

import pickle
from io import BytesIO

import numpy as np
import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data.layouts.labelled import _Unpickler  # what it refuses would run before a reader can show it
from multiflow.data.source import is_labelled, open_labelled
from tests.data.worlds import number_of, write_images


def texts_of(data):
    return tuple(data.known(i).texts for i in range(len(data)))


def write_classes(folder, classes=("cat", "dog"), each=2):
    for name in classes:
        write_images(folder / name, [f"{i}.png" for i in range(each)])
    return folder


def write_pickle(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=4))


def write_cifar10(folder, count=3):
    rng = np.random.default_rng(0)
    pixels = {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels[name] = rng.integers(0, 256, (count, 3072), np.uint8)
        write_pickle(folder / name, {b"data": pixels[name], b"labels": [1, 0, 1][:count]})
    write_pickle(folder / "batches.meta", {b"label_names": [b"airplane", b"bird"]})
    return pixels


def test_a_folder_a_class_in_splits(tmp_path):
    write_classes(tmp_path / "train", ("cat", "dog", "owl"))
    write_classes(tmp_path / "test", ("owl", "cat"))
    data = open_labelled(tmp_path, "test")
    assert data.classes == ("cat", "dog", "owl")  # those of train
    assert texts_of(data) == (("cat",), ("cat",), ("owl",), ("owl",))
    assert [item.key for item in data] == ["cat/0.png", "cat/1.png", "owl/0.png", "owl/1.png"]
    assert number_of(data[3].image) == 1
    with pytest.raises(MultiflowError, match=r"split 'val' is unknown in .* one of test, train"):
        open_labelled(tmp_path, "val")


def test_usual_names_of_the_validation_split(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "valid", each=1)
    assert len(open_labelled(tmp_path, "val")) == 2


def test_images_without_splits(tmp_path):
    write_classes(tmp_path)
    assert len(open_labelled(tmp_path, "all")) == len(open_labelled(tmp_path, None)) == 4
    with pytest.raises(MultiflowError, match=r"has no splits, so there is no split 'test'.*split=all"):
        open_labelled(tmp_path, "test")


def test_a_class_that_training_lacks(tmp_path):
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", ("cat", "cow"))
    with pytest.raises(MultiflowError, match="has a class 'cow' that .* lacks"):
        open_labelled(tmp_path, "test")


def test_labelled_images_are_told_by_their_names(tmp_path):
    (tmp_path / "a").mkdir()
    assert not is_labelled(tmp_path)
    assert not is_labelled(tmp_path / "nowhere")
    write_classes(tmp_path / "a" / "test")
    assert is_labelled(tmp_path / "a")
    assert is_labelled(tmp_path / "a" / "test")
    write_cifar10(tmp_path)
    assert is_labelled(tmp_path)


def test_no_labelled_images(tmp_path):
    with pytest.raises(MultiflowError, match=r"holds no labelled images; expected .*CIFAR-10.*SPLIT/CLASS/IMAGE"):
        open_labelled(tmp_path, "all")
    with pytest.raises(MultiflowError, match="there is no folder"):
        open_labelled(tmp_path / "nowhere", "all")


def test_cifar_10(tmp_path):
    pixels = write_cifar10(tmp_path)
    data = open_labelled(tmp_path, "test")
    assert data.classes == ("airplane", "bird")
    assert [item.captions for item in data] == list(texts_of(data)) == [("bird",), ("airplane",), ("bird",)]
    want = pixels["test_batch"][2].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(data[2].image, want)
    train = open_labelled(tmp_path, "train")
    assert len(train) == 15
    assert np.array_equal(train[7].image[0, 1], pixels["data_batch_3"][1, [1, 1025, 2049]])
    with pytest.raises(MultiflowError, match=r"split 'val' is unknown .* one of train, test"):
        open_labelled(tmp_path, "val")


def test_cifar_100_has_fine_labels(tmp_path):
    for name in ("train", "test"):
        write_pickle(
            tmp_path / name, {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [2, 0], b"coarse_labels": [0, 0]}
        )
    write_pickle(
        tmp_path / "meta", {b"fine_label_names": [b"apple", b"bee", b"cup"], b"coarse_label_names": [b"things"]}
    )
    assert texts_of(open_labelled(tmp_path, "test")) == (("cup",), ("apple",))


def test_the_form_in_which_cifar_was_released():
    """Python 2 wrote arrays as byte strings of protocol 2 under numpy's old names."""
    data = (
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x02\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x07\xfftbs."
    )
    held = _Unpickler(BytesIO(data), encoding="bytes").load()
    assert held[b"data"].tolist() == [[7, 255]]


class Evil:
    def __reduce__(self):
        return exec, ("print('run')",)  # not print itself, which other libraries replace


@pytest.mark.parametrize("where", ["test_batch", "batches.meta"])
def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path, capsys, where):
    write_cifar10(tmp_path)
    write_pickle(tmp_path / where, {b"data": Evil()})
    with pytest.raises(MultiflowError, match="it wants to run builtins.exec"):
        open_labelled(tmp_path, "test")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({b"labels": [1]}, "has no 'data'"),
        ([1], "has no 'data'"),
        ({b"data": np.zeros((1, 30), np.uint8), b"labels": [1]}, "holds no images of 3072 bytes each"),
        ({b"data": np.zeros((1, 3072)), b"labels": [1]}, "holds no images of 3072 bytes each"),
        ({b"data": b"x", b"labels": [1]}, "holds no images of 3072 bytes each"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [2]}, "labels in .* do not fit its 1 images"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": []}, "labels in .* do not fit its 1 images"),
    ],
)
def test_damaged_cifar(tmp_path, content, said):
    write_cifar10(tmp_path)
    write_pickle(tmp_path / "test_batch", content)
    with pytest.raises(MultiflowError, match=said):
        open_labelled(tmp_path, "test")


def test_cut_and_missing_cifar(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes((tmp_path / "test_batch").read_bytes()[:100])
    with pytest.raises(MultiflowError, match="test_batch' is not .*CIFAR"):
        open_labelled(tmp_path, "test")
    (tmp_path / "test_batch").unlink()
    with pytest.raises(MultiflowError, match="No such file"):
        open_labelled(tmp_path, "test")


def test_flowers_102(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    write_images(tmp_path / "jpg", [f"image_{n:05}.jpg" for n in range(1, 7)])
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[5, 1, 102, 7, 7, 2]], np.uint8)})
    savemat(tmp_path / "setid.mat", {"trnid": [[1, 4]], "valid": [[2]], "tstid": [[3, 6, 5]]})
    data = open_labelled(tmp_path, "test")
    assert texts_of(data) == (("102",), ("002",), ("007",))
    assert len(data.classes) == 102
    assert [number_of(item.image) for item in data] == [2, 5, 4]
    assert len(open_labelled(tmp_path, "val")) == 1
    (tmp_path / "setid.mat").unlink()
    with pytest.raises(MultiflowError, match=r"lacks a whole setid.mat or imagelabels.mat \(.*No such file"):
        open_labelled(tmp_path, "test")
