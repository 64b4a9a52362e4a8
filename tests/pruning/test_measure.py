from __future__ import annotations

import pytest
import torch

import multiflow as mf
from multiflow.methods import variant
from multiflow.pruning.plan import Weights
from multiflow.pruning.stages import identity
from tests.small import ADAPTER, towers_batches, two_towers


def never():
    raise AssertionError("a batch was asked for")
    yield


def test_two_passes_over_a_generator_are_refused_before_the_first():
    mf.scorer("both")(lambda weight, *, gradient, input_norm: (weight * gradient).abs() * input_norm)
    said = "take 2 passes, but batches is a generator, which can be gone through once; pass a list or a DataLoader"
    with pytest.raises(mf.MultiflowError, match=f"^gradient and input_norm {said}"):
        mf.prune(two_towers(), "both", 0.5, never(), adapter=ADAPTER)
    with pytest.raises(mf.MultiflowError, match=f"^input_norm and gradient {said}"):
        mf.calibrate(two_towers(), never(), adapter=ADAPTER, statistics=("input_norm", "gradient"))
    assert mf.prune(two_towers(), "both", 0.5, towers_batches(), adapter=ADAPTER).masks[0.5].sparsity == 0.5


def test_a_gradient_without_a_loss_is_refused_before_the_first_pass():
    adapter = mf.Adapter(groups=ADAPTER.groups, forward=ADAPTER.forward, name="towers")
    with pytest.raises(mf.MultiflowError, match="adapter 'towers' has no loss"):
        mf.calibrate(two_towers(), [], adapter=adapter, statistics=("input_norm", "gradient"))
    with pytest.raises(mf.MultiflowError, match="adapter 'towers' has no loss"):
        mf.prune(two_towers(), "snip", 0.5, never(), adapter=adapter)
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics="gradient")
    assert mf.prune(two_towers(), "snip", 0.5, stats, adapter=adapter).masks[0.5].sparsity == 0.5


def test_the_names_of_statistics():
    one, same = (mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, statistics=s) for s in
                 ("input_norm", ["input_norm"]))  # fmt: skip
    assert list(one) == ["input_norm"]
    assert all(torch.equal(value, same["input_norm"][name]) for name, value in one["input_norm"].items())
    said = "statistics is empty; name at least one of: input_norm, input_mean, input_moment, gradient"
    with pytest.raises(mf.MultiflowError, match=said):
        mf.calibrate(two_towers(), never(), adapter=ADAPTER, statistics=())


def failing(weight, *, input_norm, fails=True):
    """Say."""
    if fails:
        raise RuntimeError("scoring fails")
    return weight.abs() * input_norm


@pytest.mark.parametrize("until_stable", [None, 1.0])
def test_the_checkpoint_is_there_until_there_are_masks(tmp_path, until_stable):
    mf.scorer("failing")(failing)
    batches, place = towers_batches(2, 3, 1, 2), mf.Checkpoint(tmp_path / "checkpoint", every=1)
    options = {"adapter": ADAPTER, "checkpoint": place, "until_stable": until_stable}
    with pytest.raises(RuntimeError, match="scoring fails"):
        mf.prune(two_towers(), "failing", 0.5, batches, **options)
    assert place._there()
    if until_stable is None:  # all of them are measured: scoring is all that is left
        told = []
        mf.prune(two_towers(), "failing", 0.5, batches, fails=False, progress=lambda *s: told.append(s[0]), **options)
        assert set(told) == {"select"}
        assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_of_a_fitter_is_there_until_there_are_masks(tmp_path):
    mf.fitter("failing")(
        lambda weight, choose, *, input_norm, fails=True: (failing(weight, input_norm=0, fails=fails),)
    )
    place = mf.Checkpoint(tmp_path / "checkpoint", every=1)
    with pytest.raises(RuntimeError, match="scoring fails"):
        mf.prune(two_towers(), "failing", 0.5, towers_batches(), adapter=ADAPTER, checkpoint=place)
    assert place._there()
    mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER, checkpoint=place)
    assert not place._there()


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_file_is_left_alone_where_nothing_is_measured(tmp_path, method):
    stats = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER)
    (tmp_path / "file").write_text("mine")
    mf.prune(two_towers(), method, 0.5, stats, adapter=ADAPTER, checkpoint=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_settings_are_what_json_gives_back():
    layout, model = ADAPTER.layout(two_towers()), two_towers()
    found = identity(ADAPTER, layout, Weights(model, layout), hyper={"scales": (1, 2), "power": torch.tensor(2.0)})
    assert found["hyper"] == {"scales": [1, 2], "power": 2.0}


def test_a_run_with_a_tuple_among_its_settings_goes_on(tmp_path):
    class Stop(Exception):
        pass

    def stop(what, done, total):
        if done == 3:
            raise Stop

    @mf.scorer(allocation="global")
    def scaled(weight, *, gradient, scales=(1, 2)):
        """Say."""
        return (weight * gradient).abs() * scales[1]

    variant("scaled++", "scaled", "In steps.", stepwise=True, hyper={"steps": 4, "batches_per_step": 1})
    options = {"adapter": ADAPTER, "scales": (1, 3)}
    going = options | {"checkpoint": tmp_path / "checkpoint"}
    with pytest.raises(Stop):
        mf.prune(two_towers(), "scaled++", 0.5, towers_batches(), progress=stop, **going)
    assert list(tmp_path.iterdir())
    result = mf.prune(two_towers(), "scaled++", 0.5, towers_batches(), **going)
    assert result.masks == mf.prune(two_towers(), "scaled++", 0.5, towers_batches(), **options).masks
