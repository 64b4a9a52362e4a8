"""What holds of the task models of every family that compares images with texts."""

from __future__ import annotations

import copy

import pytest
import torch

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families.opening import load_model
from tests.families.blip import sizes as blip
from tests.families.xvlm import sizes as xvlm

FAMILIES = {"xvlm": xvlm, "blip": blip}
TASKS = ("retrieval", "captioning", "vqa")


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


def task_batch(family, task):
    batch = {key: value for key, value in family.pairs().items() if not key.startswith("mlm_")}
    if task == "retrieval":
        return batch | {"image_ids": torch.tensor([0, 1, 1, 2])}
    if task == "captioning":
        return batch | {"labels": batch["input_ids"]}
    draw = torch.Generator().manual_seed(100)
    mask = (torch.arange(5) < 3 + torch.arange(5)[:, None] % 3).long()
    return batch | {
        "answer_ids": torch.randint(3, 40, (5, 5), generator=draw) * mask,
        "answer_mask": mask,
        "answer_weights": torch.rand(5, generator=draw) + 0.1,
        "answers_per_question": torch.tensor([2, 1, 1, 1]),
    }


def made(family, task, **options):
    torch.manual_seed(1)
    return mf.task_model(family.small_model(), task, **options)


def ties(model):
    """Names of parameters that are one."""
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return sorted(names for names in found.values() if len(names) > 1)


def test_training_reaches_every_parameter_and_lowers_the_loss(family, task):
    model, batch, losses = made(family, task).train(), task_batch(family, task), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()] == []
    assert losses[-1] < losses[0] - 0.1


@torch.no_grad()
def test_saving_and_loading(family, task, tmp_path):
    model = made(family, task, image_size=32)
    for parameter in model.parameters():  # a trained one: nothing as it was
        parameter.add_(torch.randn_like(parameter) * 0.05)
    batch = task_batch(family, task) | {"pixel_values": torch.randn(4, 3, 32, 32)}
    model(**batch)  # so that what a model remembers is not the initial memory
    model.save_pretrained(tmp_path)
    for load in (type(model).from_pretrained, load_model):
        loaded = load(tmp_path)
        assert type(loaded) is type(model)
        assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
        assert ties(loaded) == ties(model)
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert bool(ties(model)) == (task != "retrieval")  # the words and their logits
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)


def test_the_dtype_stays(family, task):
    model = mf.task_model(family.small_model().bfloat16(), task)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(model(**task_batch(family, task)).loss)


def test_the_sizes_are_checked(family, task):
    with pytest.raises(MultiflowError, match="image_size is 30; .* multiple of patch_size"):
        made(family, task, image_size=30)


def test_the_batch_is_left_alone(family, task):
    batch = task_batch(family, task)
    before = copy.deepcopy(batch)
    made(family, task)(**batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in batch.items())


@pytest.mark.parametrize("key", ["pixel_values", "input_ids", "attention_mask"])
def test_a_missing_key_is_named(family, task, key):
    batch = task_batch(family, task)
    del batch[key]
    with pytest.raises(MultiflowError, match=f"no '{key}'"):
        made(family, task)(**batch)
