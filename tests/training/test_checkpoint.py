from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint


class Tied(nn.Module):
    """Two layers that share their weight, and a scalar."""

    def __init__(self, fill: float):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight
        self.scale = nn.Parameter(torch.tensor(fill))
        nn.init.constant_(self.one.weight, fill)


def trained(fill: float) -> tuple[Tied, torch.optim.AdamW]:
    model = Tied(fill)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, fused=True)
    (model.two(model.one(torch.ones(1, 3))) * model.scale).sum().backward()
    optimizer.step()
    return model, optimizer


def test_weights_optimizer_and_state_come_back(tmp_path):
    model, optimizer = trained(1.0)
    path = save_checkpoint(tmp_path, model, optimizer, {"step": 7, "note": [1, 2]})
    assert sorted(os.listdir(path)) == ["model.safetensors", "optimizer.pt", "state.json"]

    other, its = trained(2.0)
    assert load_checkpoint(path, other, its) == {"step": 7, "note": [1, 2]}
    assert torch.equal(other.one.weight, model.one.weight)
    assert other.two.weight is other.one.weight
    for a, b in zip(optimizer.state.values(), its.state.values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_only_the_latest_two_stay_and_unfinished_ones_do_not_count(tmp_path):
    model, optimizer = trained(1.0)
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, model, optimizer, {"step": step})
    (tmp_path / ".step-00000020.tmp").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010", "step-00000015"]
    save_checkpoint(tmp_path, model, optimizer, {"step": 20})
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000015", "step-00000020"]
    assert not list(tmp_path.glob(".step*"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_truncated_file_is_an_error_that_names_the_checkpoint(tmp_path, name):
    model, optimizer = trained(1.0)
    path = save_checkpoint(tmp_path, model, optimizer, {"step": 5})
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(MultiflowError, match="step-00000005 is damaged or of another model"):
        load_checkpoint(path, model, optimizer)


def test_another_model_is_an_error(tmp_path):
    path = save_checkpoint(tmp_path, *trained(1.0), {"step": 5})
    with pytest.raises(MultiflowError, match="of another model"):
        load_checkpoint(path, nn.Linear(3, 3))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MultiflowError, match=r"cannot write the checkpoint .*Not a directory"):
        save_checkpoint(tmp_path / "file", *trained(1.0), {"step": 5})
