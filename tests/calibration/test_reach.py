"""Layers of which nothing in the output depends, by whatever way it could."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from multiflow.base.types import Layer, Layout, weights_of
from multiflow.calibration import unused_layers


def unused(model, *parts, forward=lambda model, part: model(part)):
    layers = [
        Layer(name, (1, 1), "all", part=part)
        for path, module in model.named_modules()
        for name, part in weights_of(path, module).items()
    ]
    return unused_layers(model.eval(), Layout(tuple(layers)), parts or [torch.randn(2, 3, 8)], forward)


class Branch(nn.Module):
    """``used`` makes the output; what becomes of ``other`` is up to a function."""

    def __init__(self, join):
        super().__init__()
        self.other, self.used, self.join = nn.Linear(8, 8), nn.Linear(8, 8), join

    def forward(self, x):
        other = self.other(x)
        return self.join(self.used(x), other)


def in_place(used, other):
    held = torch.zeros_like(used)
    held[:, 1:] += other[:, 1:]
    return used + held


def through_a_buffer(used, other):
    buffer = used.new_empty(4, *used.shape)
    buffer[2].copy_(other)
    return used + buffer.view(2, 2, *used.shape)[1, 0]


USES = {
    "a sum": lambda used, other: used + other,
    "a gate that is zero": lambda used, other: used + 0.0 * other,
    "an argmax": lambda used, other: used.gather(-1, other.argmax(-1, keepdim=True)),
    "the best of more than there are": lambda used, other: used * other.topk(8).indices.sort().values.eq(1),
    "a detached value": lambda used, other: used + other.detach(),
    "what is written in place": in_place,
    "a view of a buffer": through_a_buffer,
    "a number that Python reads": lambda used, other: used if other.sum().item() > 0 else -used,
    "a choice of Python": lambda used, other: used if (other > 100).any() else used + 1,
    "numpy, out of torch's sight": lambda used, other: used + torch.from_numpy(np.abs(other.numpy())),
    "one of several outputs": lambda used, other: {"logits": used, "boxes": other},
}
IDLE = {
    "nothing": lambda used, other: used,
    "the shape alone": lambda used, other: used + torch.ones_like(other),
    "a tensor that is thrown away": lambda used, other: (other.relu_().softmax(-1), used)[1],
    "states that come with the output": lambda used, other: {"logits": used, "hidden_states": (other, used)},
    "the output of a part": lambda used, other: {"logits": used, "vision_outputs": {"last": other}},
}


@pytest.mark.parametrize("how", USES)
def test_what_the_output_depends_on_is_used(how):
    assert unused(Branch(USES[how])) == ()


@pytest.mark.parametrize("how", IDLE)
def test_what_nothing_depends_on_is_found(how):
    assert unused(Branch(IDLE[how])) == ("other",)


def test_states_count_where_a_model_gives_nothing_else():
    assert unused(Branch(lambda used, other: {"last_hidden_state": used, "pooler_output": other})) == ()


def test_parts_that_never_run_are_not_for_this_to_say():
    model = Branch(lambda used, other: used)
    model.never = nn.Linear(8, 8)
    assert unused(model) == ("other",)


def test_a_layer_is_used_if_one_part_of_the_batch_or_one_of_its_places_is():
    model = Branch(lambda used, other: used if used.shape[0] == 2 else used + other)
    assert unused(model, torch.randn(2, 3, 8)) == ("other",)
    assert unused(model, torch.randn(2, 3, 8), torch.randn(1, 3, 8)) == ()
    shared = Branch(lambda used, other: used)
    shared.other.weight = shared.used.weight
    layout = Layout((Layer("other", (8, 8), "all", aliases=("used",)),))
    assert unused_layers(shared, layout, [torch.randn(2, 3, 8)], lambda model, part: model(part)) == ()


def test_fused_attention_is_one_thing():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            states = self.body(x)
            pooled = self.head(states, states, states)[0]
            return {"logits": states, "pooler_output": pooled}

    assert unused(Pooled()) == ("head.q_proj", "head.k_proj", "head.v_proj", "head.out_proj")


def test_nothing_of_the_model_changes():
    class Busy(Branch):
        def __init__(self):
            super().__init__(lambda used, other: used + torch.rand(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = Busy().train()
    model.other.weight.requires_grad_(False)
    seed = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert unused_layers(
        model,
        Layout((Layer("other", (8, 8), "all"),)),
        [torch.randn(2, 3, 8, generator=torch.Generator())],
        lambda model, part: model(part),
    ) == ("other",)
    assert model.training
    assert torch.equal(seed, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_forward_that_fails_says_nothing_here():
    assert unused(Branch(lambda used, other: used @ torch.zeros(3, 3))) == ()


def test_the_last_state_is_an_answer_of_a_model_without_head():
    def forward(model, x):
        last, image = model.used(x), model.other(x)
        return {"last_hidden_state": last, "image_embeds": image, "vision_outputs": last, "hidden_states": (last,)}

    assert unused(Branch(lambda used, other: used), forward=forward) == ()


def test_what_is_gone_is_not_taken_for_what_has_its_place_in_memory():
    class Chain(Branch):
        def forward(self, x):
            out = self.used(x)
            for _ in range(40):  # tensors that come and go, and those that torch makes without being watched
                self.other(x)
                out = out + torch.tensor([0.0])
            return out

    for _ in range(5):
        assert unused(Chain(None)) == ("other",)
