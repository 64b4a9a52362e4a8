from __future__ import annotations

from pathlib import Path

import pytest
import torch

import multiflow as mf
from multiflow.calibration import Checkpoint
from tests.small import ADAPTER, towers_batches, two_towers

TENSORS = {"mask/a": torch.tensor([1, 2], dtype=torch.uint8), "count": torch.tensor(3), "view": torch.ones(4, 4).T[1:]}
SETTINGS, FACTS = {"method": "itersnip", "seed": 0, "steps": 3}, {"step": 2, "curve": [0.5, None]}


def test_a_state_comes_back_as_it_was_written(tmp_path):
    place = Checkpoint(tmp_path / "new" / "folder" / "state")
    assert place.load_state(SETTINGS) is None
    place.save_state(TENSORS, SETTINGS, FACTS)
    tensors, facts = place.load_state(SETTINGS)
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )
    place.delete()
    place.delete()
    assert place.load_state(SETTINGS) is None


def test_settings_that_differ_are_named(tmp_path):
    place = Checkpoint(tmp_path / "state")
    place.save_state(TENSORS, SETTINGS, FACTS)
    with pytest.raises(mf.MultiflowError, match="other settings") as error:
        place.load_state({"method": "itersnip", "seed": 1, "lr": 0.1})
    for fact in ("seed (0 then, 1 now)", "steps (3 then,", "lr (", "0.1 now)"):
        assert fact in str(error.value)
    assert "method" not in str(error.value)


@pytest.mark.parametrize(("path", "part"), [("c.safetensors", "c-0.75.safetensors"), ("c", "c-0.75")])
def test_a_part_is_a_file_beside(tmp_path, path, part):
    found = Checkpoint(tmp_path / path, every=3).part("0.75")
    assert (Path(found.path), found.every) == (tmp_path / part, 3)


def test_a_checkpoint_that_is_kept_outlives_the_run_and_serves_the_next_one(tmp_path):
    place, told = Checkpoint(tmp_path / "c.safetensors", every=2, keep=True), []
    data, settings = towers_batches(1, 2, 3, 2), {"adapter": ADAPTER, "checkpoint": place}
    for method, options, files in [
        ("snip", {}, ["c.safetensors"]),
        ("itersnip", {"steps": 2, "batches_per_step": 2}, ["c-0.5.safetensors"]),
        ("tamt", {"steps": 2}, ["c-0.5.safetensors"]),
    ]:
        first = mf.prune(two_towers(), method, 0.5, data, **settings, **options)
        assert [path.name for path in tmp_path.iterdir()] == files
        again = mf.prune(
            two_towers(), method, 0.5, data, **settings, **options, progress=lambda *step: told.append(step)
        )
        assert again.masks == first.masks
        assert [what for what, *_ in told if what != "select"] == []  # no batch was measured once more
        (tmp_path / files[0]).unlink()


def test_statistics_and_states_are_told_apart(tmp_path):
    place = Checkpoint(tmp_path / "file", every=1)
    place.save_state(TENSORS, SETTINGS, FACTS)
    with pytest.raises(mf.MultiflowError, match="another checkpoint of ours; delete it"):
        place.load(SETTINGS)


def test_buffers_that_a_loss_moves_are_saved_with_gradients_and_are_not_in_the_result(tmp_path):
    model, places = two_towers(), []
    model.register_buffer("seen", torch.zeros(1))

    def loss(m, batch):
        m.seen += 1
        return ADAPTER.loss(m, batch)

    def look(what, done, total):
        places.append(mf.Stats.load(tmp_path / "file").buffers["seen"].tolist())

    options = {
        "adapter": mf.Adapter(groups=ADAPTER.groups, loss=loss),
        "checkpoint": Checkpoint(tmp_path / "file", every=1),
    }
    stats = mf.calibrate(model, towers_batches(1, 1, 1), statistics=["gradient"], progress=look, **options)
    assert places == [[1.0], [2.0], [3.0]]
    assert stats.buffers == {}
    assert model.seen.tolist() == [0.0]


def test_tensors_that_share_memory_are_saved_each_by_itself(tmp_path):
    whole, place = torch.arange(8.0), Checkpoint(tmp_path / "state")
    place.save_state({"whole": whole, "part": whole[:4], "again": whole, "empty": torch.empty(0)}, SETTINGS, FACTS)
    tensors, _ = place.load_state(SETTINGS)
    assert torch.equal(tensors["whole"], whole)
    assert torch.equal(tensors["part"], whole[:4])
    assert torch.equal(tensors["again"], whole)


@pytest.mark.parametrize("every", [0, -1, 2.0, True])
def test_how_often_is_a_whole_number(every):
    with pytest.raises(mf.MultiflowError, match=f"every={every} of a checkpoint; expected a whole number"):
        Checkpoint("file", every=every)
