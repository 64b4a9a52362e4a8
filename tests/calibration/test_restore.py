from __future__ import annotations

import pytest
import torch
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.calibration import buffers_restored, differentiable, put_buffers, weights_replaced


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_buffers_get_their_values_back_in_the_same_memory():
    norm = model()[1]
    before, memory = norm.running_mean.clone(), norm.running_mean.data_ptr()
    with pytest.raises(KeyboardInterrupt), buffers_restored(norm):
        norm(torch.ones(2, 4))
        assert int(norm.num_batches_tracked) == 1
        raise KeyboardInterrupt
    assert torch.equal(norm.running_mean, before)
    assert norm.running_mean.data_ptr() == memory
    assert int(norm.num_batches_tracked) == 0


def test_the_memory_of_weights_is_never_written_to():
    layer = model()[0]
    before, data, version = layer.weight.detach().clone(), layer.weight.data_ptr(), layer.weight._version
    with pytest.raises(KeyboardInterrupt), weights_replaced({"0": layer.weight}):
        layer.weight.data = torch.zeros(4, 3)
        layer.weight.data.add_(1)
        raise KeyboardInterrupt
    assert torch.equal(layer.weight, before)
    assert (layer.weight.data_ptr(), layer.weight._version) == (data, version)


def test_only_the_weights_asked_for_keep_gradients_meanwhile():
    net = model().train()
    first, *others = net.parameters()
    first.grad, kept = torch.ones(4, 3), others[0].requires_grad_(False)
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), differentiable(net, {"0": first}):
        assert not net.training
        assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
        net(torch.ones(2, 3)).sum().backward()
        assert not torch.equal(first.grad, torch.ones(4, 3))
        assert all(p.grad is None for p in others)
        raise KeyboardInterrupt
    assert torch.equal(first.grad, torch.ones(4, 3))
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
    assert kept.grad is None
    assert net.training
    assert net[1].training


class Odd(nn.Module):
    """Puts another tensor in a buffer's place, fills an empty one, and has one whose memory overlaps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("kept", None)
        self.register_buffer("wide", torch.arange(4).expand(2, -1))
        self.register_buffer("quiet", torch.ones(3))

    def forward(self) -> None:
        self.count = self.count + 1
        self.kept = torch.ones(2)
        self.quiet.data.mul_(2)  # without a trace in its version


def test_a_buffer_that_another_tensor_took_the_place_of():
    odd = Odd()
    held = dict(odd._buffers)
    with buffers_restored(odd):
        odd()
        assert odd.count == 1
        assert odd.kept is not None
    assert all(odd._buffers[name] is buffer for name, buffer in held.items())
    assert odd.count == 0
    assert odd.quiet.tolist() == [1.0] * 3


def test_buffers_of_a_checkpoint_are_put_where_they_differ():
    odd = Odd()
    put_buffers(odd, {"count": torch.tensor(3.0), "wide": torch.arange(4).repeat(2, 1)})
    assert odd.count == 3


def test_no_gradients_inside_inference_mode():
    net = model()
    with (
        torch.inference_mode(),
        pytest.raises(MultiflowError, match=r"torch.inference_mode\(\); .* outside"),
        differentiable(net, {}),
    ):
        pass
