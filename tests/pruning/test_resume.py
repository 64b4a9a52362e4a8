"""Runs that were killed go on where they stood: with the masks, and weights, of a run that was never stopped."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import multiflow as mf
from multiflow.base.artifacts import read_tensors, write_tensors
from tests import golden_data
from tests.small import ADAPTER, TwoTowers, towers_batches

SETTINGS = {
    "snip": {},
    "itersnip": {"steps": 3, "batches_per_step": 2},
    "chita++": {"steps": 3, "batches_per_step": 2},
    "tamt": {"steps": 6, "lr": 0.05},
}
EVERY = 2
CASES = [("blip", "snip", 3), *(("custom, tied", "snip", after) for after in (1, 3, 4))]
for method in ("itersnip", "chita++", "tamt"):  # twelve batches, six for each sparsity
    CASES += [
        ("blip", method, 3),
        ("blip", method, 8),
        *(("custom, tied", method, after) for after in (1, 3, 4, 8, 11)),
    ]


class Moving(TwoTowers):
    """Tied towers with dropout, and a buffer that every loss moves and reads."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.register_buffer("pace", torch.ones(()))

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.pace *= 0.9
        return self.drop(super().forward(pixels, ids, mask)) * self.pace.clone()


class Stopping:
    """Batches, and Ctrl-C in place of the one after so many."""

    def __init__(self, batches, after) -> None:
        self.batches, self.left = batches, after

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@cache
def kind(name):
    """Model, batches and adapter."""
    if name == "blip":
        return golden_data.model("blip"), golden_data.batches("blip")[:5], None
    torch.manual_seed(0)
    return Moving(), towers_batches(2, 3, 1, 2, 2), ADAPTER


def run(name, method, batches=None, **options):
    model, data, adapter = kind(name)
    options = {"sparsity": [0.5, 0.75], "adapter": adapter} | SETTINGS[method] | options
    return mf.prune(model, method, batches=data if batches is None else batches, **options)


@cache
def straight(name, method):
    return run(name, method)


@pytest.mark.parametrize(("name", "method", "after"), CASES)
def test_a_run_that_was_killed_goes_on_bit_for_bit(tmp_path, name, method, after):
    (model, data, _), whole = kind(name), straight(name, method)
    before = {key: value.clone() for key, value in [*model.state_dict().items(), *model.named_buffers()]}
    place = mf.Checkpoint(tmp_path / "checkpoint", every=EVERY)
    with pytest.raises(KeyboardInterrupt):
        run(name, method, Stopping(data, after), checkpoint=place)
    assert all(torch.equal(value, before[key]) for key, value in [*model.state_dict().items(), *model.named_buffers()])
    assert bool(list(tmp_path.iterdir())) == (after >= EVERY)

    told = []
    result = run(name, method, checkpoint=place, progress=lambda what, done, _: what == "select" or told.append(done))
    assert len(told) == (len(data) if method == "snip" else 12) - after // EVERY * EVERY
    assert result.masks == whole.masks
    for sparsity, weights in (whole.weights or {}).items():
        assert all(torch.equal(weight, result.weights[sparsity][key]) for key, weight in weights.items())
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(value, before[key]) for key, value in [*model.state_dict().items(), *model.named_buffers()])


@pytest.mark.parametrize("method", ["itersnip", "chita++", "tamt"])
def test_a_run_that_is_killed_again_and_again(tmp_path, method):
    data, place, kills = kind("custom, tied")[1], mf.Checkpoint(tmp_path / "checkpoint", every=EVERY), 0
    for after in range(3, 30, 3):  # what is done already is gone through again
        try:
            result = run("custom, tied", method, Stopping(data, after), checkpoint=place)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 3
    assert result.masks == straight("custom, tied", method).masks


@pytest.mark.parametrize("method", ["itersnip", "chita++", "tamt"])
@pytest.mark.parametrize(("other", "said"), [
    ({"seed": 5}, r"other settings: seed \(0 then, 5 now\); use the same ones, or delete the checkpoint"),
    ({"steps": 4}, r"other settings: hyper \({.*'steps': \d.*} then, {.*'steps': 4.*} now\)"),
])  # fmt: skip
def test_other_settings_are_told_apart(tmp_path, method, other, said):
    data = kind("custom, tied")[1]
    place = mf.Checkpoint(tmp_path / "checkpoint", every=EVERY)
    with pytest.raises(KeyboardInterrupt):
        run("custom, tied", method, Stopping(data, 3), checkpoint=place)
    with pytest.raises(mf.MultiflowError, match=said):
        run("custom, tied", method, checkpoint=place, **other)
    assert run("custom, tied", method, checkpoint=place).masks == straight("custom, tied", method).masks


def test_the_checkpoint_of_another_method_or_of_other_weights_is_refused(tmp_path):
    data = kind("custom, tied")[1]
    place = mf.Checkpoint(tmp_path / "checkpoint", every=EVERY)
    with pytest.raises(KeyboardInterrupt):
        run("custom, tied", "itersnip", Stopping(data, 3), checkpoint=place)
    with pytest.raises(mf.MultiflowError, match=r"method \(itersnip then, tamt now\)"):
        run("custom, tied", "tamt", checkpoint=place)
    torch.manual_seed(1)
    with pytest.raises(mf.MultiflowError, match=r"other settings: weights_hash \(\w{16} then, \w{16} now\)"):
        mf.prune(Moving(), "itersnip", [0.5, 0.75], data, adapter=ADAPTER, checkpoint=place, **SETTINGS["itersnip"])


@pytest.mark.parametrize("method", ["itersnip", "chita++", "tamt"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, method):
    data = kind("custom, tied")[1]
    place = mf.Checkpoint(tmp_path / "checkpoint", every=EVERY)
    with pytest.raises(KeyboardInterrupt):
        run("custom, tied", method, Stopping(data, 3), checkpoint=place)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"nonsense", b""):
        file.write_bytes(damaged)
        with pytest.raises(mf.MultiflowError, match=r"^'.*' holds no checkpoint, or is damaged \(.*\); delete it$"):
            run("custom, tied", method, checkpoint=place)
    file.unlink()
    assert run("custom, tied", method, checkpoint=place).masks == straight("custom, tied", method).masks


@pytest.mark.parametrize("method", ["itersnip", "chita++", "tamt"])
def test_a_checkpoint_that_claims_what_cannot_be_is_refused(tmp_path, method):
    """Also one whose checksum fits: whoever wrote it may have made that, too."""
    place = mf.Checkpoint(tmp_path / "checkpoint", every=EVERY)
    with pytest.raises(KeyboardInterrupt):
        run("custom, tied", method, Stopping(kind("custom, tied")[1], 3), checkpoint=place)
    (file,) = tmp_path.iterdir()
    tensors, header = read_tensors(file, "checkpoint")
    facts, first = header["facts"], next(name for name in tensors if name.endswith("text.0"))
    lies = [
        ({}, {"taken": 1 << 63}, "says taken=9223372036854775808"),
        ({}, {"step": -1}, "says step=-1"),
        ({}, {"step": 2.5}, "says step=2.5"),
        ({first: None}, {}, f"lacks '{first}'"),
        ({"more/text.9": tensors[first]}, {}, "'more/text.9', which does not belong there|lacks 'more/"),
        ({first: tensors[first].reshape(-1)[:1].clone()}, {}, rf"'{first}' in '.*' is \w+ \(1,\); expected"),
    ]
    for kind_ in {name.partition("/")[0] for name in tensors}:  # all moments of a kind, say
        lies.append(({name: None for name in tensors if name.startswith(f"{kind_}/")}, {}, f"lacks '{kind_}/"))
    for tensor, fact, said in lies:
        changed = {name: value for name, value in (tensors | tensor).items() if value is not None}
        write_tensors(file, changed, {"settings": header["settings"], "facts": facts | fact})
        with pytest.raises(mf.MultiflowError, match=said):
            run("custom, tied", method, checkpoint=place)


def test_data_with_fewer_batches_than_the_checkpoint_has_seen_begin_again(tmp_path):
    """They are gone through as often as it takes: what comes next is the batch at the same position."""
    data = kind("custom, tied")[1][:3]
    place = mf.Checkpoint(tmp_path / "checkpoint", every=EVERY)
    whole = run("custom, tied", "itersnip", data)
    with pytest.raises(KeyboardInterrupt):
        run("custom, tied", "itersnip", Stopping(data, 5), checkpoint=place)
    assert run("custom, tied", "itersnip", data, checkpoint=place).masks == whole.masks
