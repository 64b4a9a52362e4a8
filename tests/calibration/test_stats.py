from __future__ import annotations

import pytest
import torch

import multiflow as mf
from tests.small import ADAPTER, towers_batches, two_towers


def test_merging_parts_equals_one_run():
    model, batches = two_towers(), towers_batches()
    first, second, both = (mf.calibrate(model, part, adapter=ADAPTER) for part in (batches[:2], batches[2:], batches))
    merged = first.merge(second)
    for name in both["input_norm"]:
        assert torch.equal(merged["input_norm"][name], both["input_norm"][name])
    assert merged.counts == both.counts
    assert (first.batches, merged.batches) == (2, 4)
    assert mf.Stats().merge(both).counts == both.counts


def test_save_and_load(tmp_path):
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER)
    loaded = mf.Stats.load(stats.save(tmp_path / "stats.safetensors"))
    assert loaded.batches == stats.batches == 4
    assert loaded.counts == stats.counts
    assert all(torch.equal(loaded.sums["input_norm"][n], t) for n, t in stats.sums["input_norm"].items())


def test_a_damaged_file_is_one_sentence(tmp_path):
    (tmp_path / "s").write_bytes(b"x" * 100)
    with pytest.raises(mf.MultiflowError, match="holds no statistics, or is damaged"):
        mf.Stats.load(tmp_path / "s")


def stopping(batches, after):
    for i, batch in enumerate(batches):
        if i == after:
            raise KeyboardInterrupt
        yield batch


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path, after):
    model, batches = two_towers(), towers_batches(2, 2, 3, 1, 2, 2, 1)
    place = mf.Checkpoint(tmp_path / "calibration", every=2)
    with pytest.raises(KeyboardInterrupt):
        mf.calibrate(model, stopping(batches, after), adapter=ADAPTER, checkpoint=place)
    assert (tmp_path / "calibration").exists() == (after >= 2)
    seen = []
    stats = mf.calibrate(
        model, batches, adapter=ADAPTER, checkpoint=place, progress=lambda what, done, total: seen.append(done)
    )
    assert seen == list(range(after // 2 * 2 + 1, 8))
    straight = mf.calibrate(model, batches, adapter=ADAPTER)
    assert all(torch.equal(stats.sums["input_norm"][n], t) for n, t in straight.sums["input_norm"].items())
    assert stats.counts == straight.counts
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_settings_says_which(tmp_path):
    place = mf.Checkpoint(tmp_path / "calibration", every=1)
    with pytest.raises(KeyboardInterrupt):
        mf.calibrate(two_towers(), stopping(towers_batches(), 2), adapter=ADAPTER, checkpoint=place)
    other = mf.Adapter(groups={"text": r"^text\."}, forward=ADAPTER.forward)
    with pytest.raises(mf.MultiflowError, match=r"other settings: layers \(5 then, 2 now\)"):
        mf.calibrate(two_towers(), towers_batches(), adapter=other, checkpoint=place)


def test_a_checkpoint_of_other_weights_or_of_more_data_is_refused(tmp_path):
    place = mf.Checkpoint(tmp_path / "calibration", every=3)
    with pytest.raises(KeyboardInterrupt):
        mf.calibrate(two_towers(), stopping(towers_batches(), 3), adapter=ADAPTER, checkpoint=place)
    with pytest.raises(mf.MultiflowError, match=r"other settings: weights_hash \(\w{16} then, \w{16} now\)"):
        mf.calibrate(two_towers(seed=1), towers_batches(), adapter=ADAPTER, checkpoint=place)
    with pytest.raises(mf.MultiflowError, match="comes from 3 batches, but the data hold 2"):
        mf.calibrate(two_towers(), towers_batches()[:2], adapter=ADAPTER, checkpoint=place)


def test_a_checkpoint_that_cannot_be_written_is_told_before_the_first_batch(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(mf.MultiflowError, match="cannot write checkpoint '.*file/x/c'"):
        mf.calibrate(two_towers(), iter([1 / 1]), adapter=ADAPTER, checkpoint=tmp_path / "file/x/c")


def test_parts_from_two_devices_merge_on_that_of_the_first():
    class Elsewhere(torch.Tensor):
        """A tensor that says it is on another device until it is moved."""

        device = torch.device("meta")

        def to(self, device):
            assert device == torch.device("cpu")
            return self.as_subclass(torch.Tensor)

        def __radd__(self, other):
            raise AssertionError("added across devices")

        __add__ = __radd__

    mine = mf.Stats({"gradient": {"a": torch.ones(2)}}, {"gradient": {"a": 1}}, 1)
    other = mf.Stats({"gradient": {"a": torch.ones(2).as_subclass(Elsewhere)}}, {"gradient": {"a": 1}}, 1)
    assert mine.merge(other).sums["gradient"]["a"].tolist() == [2.0, 2.0]
