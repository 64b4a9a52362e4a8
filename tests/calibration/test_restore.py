from __future__ import annotations

import pytest
import torch
from torch import nn

from multiflow.calibration import buffers_restored, differentiable, weights_replaced


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


def test_only_the_weights_asked_for_have_gradients_meanwhile():
    net = model().train()
    first, *others = net.parameters()
    first.grad, kept = torch.ones(4, 3), others[0].requires_grad_(False)
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), differentiable(net, {"0": first}):
        assert not net.training
        assert [p.requires_grad for p in net.parameters()] == [True, False, False, False]
        net(torch.ones(2, 3)).sum().backward()
        assert not torch.equal(first.grad, torch.ones(4, 3))
        assert all(p.grad is None for p in others)
        raise KeyboardInterrupt
    assert torch.equal(first.grad, torch.ones(4, 3))
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
    assert kept.grad is None
    assert net.training
    assert net[1].training
