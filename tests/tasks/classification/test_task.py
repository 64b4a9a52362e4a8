from __future__ import annotations

import doctest
import json

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from multiflow.base.errors import MultiflowError
from multiflow.data import VIT_MEAN, VIT_STD, to_pixels
from multiflow.metrics import top1
from multiflow.tasks.classification import task as classification
from multiflow.tasks.classification.task import RESULTS
from multiflow.tasks.task import TASKS
from tests.data.layouts.test_labelled import write_cifar10
from tests.data.worlds import number_of, picture, write_images

TASK = TASKS["classification"]
CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for c, name in enumerate(CLASSES):
            write_images(tmp_path / split / name, [f"{i}.png" for i in range(2 + c)])
    return tmp_path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=8, num_labels=3, initializer_range=1.0)  # fmt: skip
    return ViTForImageClassification(config).eval()


def test_the_limit_takes_images_of_all_classes(folder):
    data = TASK.open(folder, "test", limit=3)
    assert [name for (name,) in data.texts] == ["cat", "dog", "owl"]
    assert [item.captions for item in data] == list(data.texts)
    assert len(TASK.open(folder, "test", limit=50)) == len(TASK.open(folder, "test")) == 9
    assert TASK.options(data) == {"classes": 3}


def test_what_cannot_be_opened(folder, tmp_path):
    with pytest.raises(MultiflowError, match="images 'x' was given"):
        TASK.open(folder, "test", images="x")
    with pytest.raises(MultiflowError, match="limit 0 was given"):
        TASK.open(folder, "test", limit=0)


def test_missing_files_are_counted(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    write_images(tmp_path / "jpg", ["image_00001.jpg"])
    savemat(tmp_path / "imagelabels.mat", {"labels": [[1, 2]]})
    savemat(tmp_path / "setid.mat", {"trnid": [[1, 2]], "valid": [[1]], "tstid": [[1]]})
    with pytest.raises(MultiflowError, match=r"1 of 2 items .*image_00002.jpg \(no such file\)"):
        TASK.open(tmp_path, "train")
    data = TASK.open(tmp_path, "train", skip_missing=True)
    assert (len(data), data.texts, len(data.skipped)) == (1, (("001",),), 1)


def test_arrays_have_no_files_to_miss(tmp_path):
    write_cifar10(tmp_path)
    assert len(TASK.open(tmp_path, "train", limit=4)) == 4


def test_a_batch_holds_images_with_the_number_of_their_class(folder, model):
    data = TASK.open(folder, "train")
    batch = TASK.batch(data, TASK.inputs(model, None, seed=2), 9, 0)
    assert sorted(batch["labels"].tolist()) == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    value, figures = TASK.loss(model, batch, 0)
    assert torch.allclose(value, model(**batch).loss)
    assert figures["right"] == (model(**batch).logits.argmax(1) == batch["labels"]).float().mean()


def test_top_1_is_counted_as_by_hand(folder, model, tmp_path):
    data, seen = TASK.open(folder, "test"), []
    figures = TASK.evaluate(model, None, data, batch_size=4, save=tmp_path / "said", mean=VIT_MEAN, std=VIT_STD,
                            progress=lambda *x: seen.append(x))  # fmt: skip
    pixels = torch.from_numpy(to_pixels([picture(number_of(item.image)) for item in data], 8, VIT_MEAN, VIT_STD))
    said = model(pixel_values=pixels).logits.argmax(1).tolist()
    right = [CLASSES[label] == name for label, (name,) in zip(said, data.texts, strict=True)]
    assert figures == {"top-1": pytest.approx(100 * sum(right) / 9)}
    assert TASK.score(figures) == figures[TASK.main_of(figures)] == figures["top-1"]
    assert figures.each == tuple(100.0 * hit for hit in right)
    assert seen == [(4, 9), (8, 9), (9, 9)]
    written = json.loads((tmp_path / "said" / RESULTS).read_text())
    assert [entry["class"] for entry in written] == [CLASSES[label] for label in said]
    assert written[0]["image"] == "cat/0.png"


def test_names_that_the_model_knows_decide(folder, model, monkeypatch):
    data = TASK.open(folder, "test")
    before = TASK.evaluate(model, None, data)
    monkeypatch.setattr(model.config, "label2id", {"owl": 0, "dog": 1, "cat": 2})
    monkeypatch.setattr(model.config, "id2label", {0: "owl", 1: "dog", 2: "cat"})
    said = model(pixel_values=torch.from_numpy(to_pixels([item.image for item in data], 8))).logits.argmax(1).tolist()
    names = [("owl", "dog", "cat")[label] == name for label, (name,) in zip(said, data.texts, strict=True)]
    assert TASK.evaluate(model, None, data) == {"top-1": pytest.approx(100 * sum(names) / 9)}
    assert before != TASK.evaluate(model, None, data)


def test_another_number_of_classes(tmp_path, model):
    write_images(tmp_path / "test" / "cat", ["0.png"])
    with pytest.raises(MultiflowError, match="the model knows 3 classes and .* has 1; give the data"):
        TASK.evaluate(model, None, TASK.open(tmp_path, "test"))


def test_top1_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [1.0, 2.0, 3.0]])
    assert top1(logits, torch.tensor([0, 0, 1, 2])) == 75.0
    assert top1(logits[:1].bfloat16(), torch.tensor([2])) == 0.0


@pytest.mark.parametrize(("logits", "labels"), [((2, 3), (3,)), ((2, 3), (2, 1)), ((2,), (2,)), ((0, 3), (0,))])
def test_shapes_that_do_not_fit_are_named(logits, labels):
    with pytest.raises(MultiflowError) as error:
        top1(torch.zeros(logits), torch.zeros(labels, dtype=torch.long))
    assert f"logits of shape {logits} and labels of shape {labels}" in str(error.value)


def test_examples_in_docstrings_are_true():
    assert doctest.testmod(classification, extraglobs={"torch": torch}).failed == 0
