from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from multiflow.training.loop import learning_rate, make_optimizer, parameter_groups, set_learning_rate
from multiflow.training.settings import TrainSettings
from tests.training.test_loop import make_model


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_learning_rate_rises_then_falls_to_zero(schedule):
    settings = TrainSettings(steps=100, lr=2.0, warmup=0.1, schedule=schedule)
    rates = [learning_rate(settings, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert all(a > b > 0 for a, b in pairwise(rates[9:]))
    assert learning_rate(settings, 101) == pytest.approx(0)
    assert max(rates) == rates[9]


def test_without_a_warmup_the_first_step_is_nearly_the_highest():
    assert learning_rate(TrainSettings(steps=10, lr=1.0, warmup=0.0, schedule="linear"), 1) == pytest.approx(10 / 11)


def test_only_matrices_decay():
    model = make_model()
    model[0].weight.requires_grad_(False)
    decayed, rest = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert [p.shape for p in decayed["params"]] == [(1, 16)]
    assert len(rest["params"]) == 4


def test_new_parameters_learn_faster():
    model = make_model()
    new = {"4.weight", "4.bias"}
    optimizer = make_optimizer(model, TrainSettings(10, 1.0, new_lr=2.0), new)
    set_learning_rate(optimizer, 0.5)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[p] for name, p in model.named_parameters()} == {
        name: 1.0 if name in new else 0.5 for name, _ in model.named_parameters()
    }
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0, 0.01, 0.0]


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_optimizer_is_the_one_asked_for(name, kind):
    optimizer = make_optimizer(nn.Linear(2, 2), TrainSettings(1, 0.1, optimizer=name))
    assert type(optimizer) is kind
    assert len(optimizer.param_groups) == 2
