"""Gradient descent that ends by itself: what is taken back, and where it goes on."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

from multiflow.recovery.descent import Descent, descend

GOAL = torch.linspace(-1, 1, 64)


def run(how, away, saved=None, stop=None):
    parameter = nn.Parameter(GOAL + away)
    states = []

    def after(tensors, facts):
        states.append(({name: x.clone() for name, x in tensors.items()}, facts))
        if facts["epoch"] == stop:
            raise KeyboardInterrupt

    found = None
    with suppress(KeyboardInterrupt):
        found = descend(
            [parameter],
            lambda number: (parameter - GOAL).square().mean(),
            range(1, 9),
            8,
            how,
            "a parameter",
            optimizer=torch.optim.Adam([parameter], how.lr),
            saved=saved,
            after_epoch=after,
        )
    return found, parameter.detach(), states


def test_weights_that_are_nearly_there_survive_a_rate_that_is_too_high():
    found, parameter, states = run(Descent(epochs=6, lr=0.1, patience=2), 0.003)
    assert states[0][1]["best"] == found.before  # the first pass made it worse, and was taken back
    assert states[0][1]["share_left"] < 1
    assert found.after < 0.3 * found.before
    assert (parameter - GOAL).abs().max() < 0.003


def test_weights_that_are_far_away_keep_their_rate():
    found, _, states = run(Descent(epochs=6, lr=0.1), 1.0)
    assert found.after < 0.01 * found.before
    assert all(facts["share_left"] == 1 for _, facts in states)


def test_what_was_taken_back_goes_on_to_the_same_bits():
    how = Descent(epochs=6, lr=0.1, patience=2)
    found, parameter, _ = run(how, 0.003)
    _, _, states = run(how, 0.003, stop=1)
    again, other, _ = run(how, 0.003, saved=states[-1])
    assert again == found
    assert torch.equal(other, parameter)
