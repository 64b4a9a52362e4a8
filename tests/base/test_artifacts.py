"""Files of ours and published ones: what was altered, claims too much or is no file is refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import multiflow as mf
from multiflow.base.artifacts import (
    check_tensors,
    next_line,
    read_facts,
    read_lines,
    read_one,
    read_tensors,
    write_facts,
    write_tensors,
)
from multiflow.base.torch_files import read_torch
from multiflow.calibration import Checkpoint
from multiflow.pruning.result import changed_weights
from multiflow.training.checkpoint import load_checkpoint, save_checkpoint
from tests.small import ADAPTER, towers_batches, two_towers

SETTINGS = {"method": "itersnip", "pi": 0.1 + 0.2, "name": "né"}
FLIPS = 60  # of single bits, in each kind of file
Reader = Callable[[], Any]


def state(folder: Path) -> tuple[Path, Reader]:
    place = Checkpoint(folder / "state")
    place.save_state(
        {"mask/a": torch.ones(9, dtype=torch.uint8), "b": torch.randn(3, 5).bfloat16()}, SETTINGS, {"step": 2}
    )
    return Path(place.path), lambda: place.load_state(SETTINGS)


def stats(folder: Path) -> tuple[Path, Reader]:
    found = mf.calibrate(two_towers(), towers_batches(), adapter=ADAPTER)
    path = found.save(folder / "stats", seconds=1e-9)
    return path, lambda: mf.Stats.load(path)


def masks(folder: Path) -> tuple[Path, Reader]:
    path = mf.prune(two_towers(), "magnitude", 0.3, adapter=ADAPTER).masks[0.3].save(folder / "mask.safetensors")
    return path, lambda: mf.Masks.load(path)


def weights(folder: Path) -> tuple[Path, Reader]:
    mf.prune(two_towers(), "lobs", 0.5, towers_batches(), adapter=ADAPTER).save(folder / "run")
    return folder / "run/weights-0.5.safetensors", lambda: mf.Result.load(folder / "run")


def result(folder: Path) -> tuple[Path, Reader]:
    mf.prune(two_towers(), "magnitude", 0.3, adapter=ADAPTER).save(folder / "run")
    return folder / "run/result.json", lambda: mf.Result.load(folder / "run")


def training(name: str) -> Callable[[Path], tuple[Path, Reader]]:
    def training(folder: Path) -> tuple[Path, Reader]:
        model = two_towers()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        ADAPTER.loss(model, towers_batches(2)[0]).backward()
        optimizer.step()
        path = save_checkpoint(folder, model, optimizer, {"step": 3, "metrics": {"loss": 0.1 + 0.2}})
        return path / name, lambda: load_checkpoint(path, model, optimizer)

    training.__name__ = f"training {name}"
    return training


KINDS = [state, stats, masks, weights, result, *map(training, ("model.safetensors", "optimizer.pt", "state.json"))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_flipped_bit_is_noticed(tmp_path, kind):
    path, read = kind(tmp_path)
    read()
    whole, random_ = path.read_bytes(), random.Random(0)
    head = 8 + struct.unpack("<Q", whole[:8])[0] if path.suffix != ".json" else len(whole)
    for number in range(FLIPS):
        at = random_.randrange(len(whole) if number % 2 else min(head, len(whole)))
        data = bytearray(whole)
        data[at] ^= 1 << random_.randrange(8)
        path.write_bytes(data)
        with pytest.raises(mf.MultiflowError):
            read()
            pytest.fail(f"bit flipped in byte {at} of {len(whole)}")


def test_tensors_and_header_come_back_as_they_were(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.zeros(0, 2), "c": torch.tensor(True), "d": torch.tensor(1 + 2j)}
    path = write_tensors(tmp_path / "x", tensors, SETTINGS)
    found, header = read_tensors(path, "state")
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert {name: header[name] for name in SETTINGS} == SETTINGS
    assert write_tensors(tmp_path / "y", tensors, SETTINGS).read_bytes() == path.read_bytes()


def test_files_without_a_checksum_open(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "old", metadata={"multiflow": '{"step": 1}'})
    assert read_tensors(tmp_path / "old", "state")[1] == {"step": 1}
    (tmp_path / "old.json").write_text('{"settings": {"a": 1}}')
    assert read_facts(tmp_path / "old.json", "result", "") == {"settings": {"a": 1}}


@pytest.mark.parametrize("gone", [["checksum"], ["checksum", "tensors"], ["tensors"], ["tensors", "format"]])
def test_tensors_whose_checksum_was_taken_away(tmp_path, gone):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = write_tensors(tmp_path / "x", {"a": torch.ones(2)}, {"step": 1})
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["multiflow"])
    rest = json.dumps({name: value for name, value in header.items() if name not in gone})
    save_file(load_file(path), path, metadata={"multiflow": rest})
    with pytest.raises(mf.MultiflowError, match="was altered: .*checksum"):
        read_tensors(path, "state")


def test_files_of_a_version_to_come(tmp_path, monkeypatch):
    monkeypatch.setattr("multiflow.base.artifacts.FORMAT", 9)
    tensors, facts = write_tensors(tmp_path / "x", {"a": torch.ones(2)}, {}), write_facts(tmp_path / "y", {"a": 1})
    monkeypatch.undo()
    for read in (lambda: read_tensors(tensors, "state"), lambda: read_facts(facts, "result", "")):
        with pytest.raises(mf.MultiflowError, match="format 9, .* up to 2; update multiflow"):
            read()


def test_weights_of_another_run_are_not_taken_for_those_of_the_masks(tmp_path):
    for seed, name in [(0, "one"), (1, "other")]:
        mf.prune(two_towers(seed), "lobs", 0.5, towers_batches(), adapter=ADAPTER).save(tmp_path / name)
    mine, theirs = (tmp_path / name / "weights-0.5.safetensors" for name in ("one", "other"))
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(mf.MultiflowError, match="does not hold the changed weights that .*mask-0.5"):
        mf.Result.load(tmp_path / "one")
    again = mf.Result.load(tmp_path / "other").save(tmp_path / "again")
    assert mf.Result.load(again).weights is not None


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", '"\ud800"'])
def test_headers_and_json_that_hold_no_names(tmp_path, text):
    from safetensors.torch import save_file

    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(mf.MultiflowError, match="x.json' is damaged"):
        read_facts(tmp_path / "x.json", "result", "run again")
    if text.isascii():
        save_file({"a": torch.ones(2)}, tmp_path / "x", metadata={"multiflow": text})
        with pytest.raises(mf.MultiflowError, match="holds no state, or is damaged"):
            read_tensors(tmp_path / "x", "state")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a": None}, "lacks 'a'"),
        ({"aa": torch.ones(2, 3)}, "holds 'aa', which does not belong there; did you mean 'a'"),
        ({"a": torch.ones(3, 2)}, r"'a' in 'f' is float32 \(3, 2\); expected float32 \(2, 3\)"),
        ({"a": torch.ones(2, 3).int()}, r"is int32 \(2, 3\); expected float32"),
        ({"a": torch.full((2, 3), float("nan"))}, "'a' in 'f' holds NaN or Inf"),
    ],
)
def test_tensors_other_than_expected(change, said):
    tensors = {name: x for name, x in ({"a": torch.ones(2, 3)} | change).items() if x is not None}
    with pytest.raises(mf.MultiflowError, match=said):
        check_tensors("f", tensors, {"a": ((2, 3), [torch.float32])}, "prune again")


def test_changed_weights_of_an_old_file_are_checked(tmp_path):
    from safetensors.torch import load_file, save_file

    path, read = weights(tmp_path)
    old, mask = load_file(path), tmp_path / "run/mask-0.5.safetensors"
    save_file(old, path)
    with pytest.raises(mf.MultiflowError, match="their checksum is missing"):
        read()
    masks = mf.Masks.load(mask)
    settings = {name: value for name, value in masks.settings.items() if name != "weights_checksum"}
    replace(masks, settings=settings).save(mask)  # as older versions wrote it
    read()
    for bad, said in [(float("nan"), "holds NaN or Inf"), (None, "expected float32")]:
        first = next(iter(old))
        save_file(old | {first: old[first].int() if bad is None else torch.full_like(old[first], bad)}, path)
        with pytest.raises(mf.MultiflowError, match=said):
            changed_weights(mask, mf.Masks.load(mask))


def test_a_checkpoint_that_claims_more_than_there_is(tmp_path):
    place, batches = Checkpoint(tmp_path / "c", every=1, keep=True), towers_batches()
    mf.calibrate(two_towers(), batches, adapter=ADAPTER, checkpoint=place)
    mf.calibrate(two_towers(), batches, adapter=ADAPTER, checkpoint=Checkpoint(tmp_path / "d", keep=True, every=1))
    tensors, header = read_tensors(place.path, "statistics")

    def run(**change: Any) -> None:
        rest = {name: value for name, value in header.items() if name not in ("tensors", "checksum")}
        write_tensors(place.path, change.pop("tensors", tensors), rest | change)
        mf.calibrate(two_towers(), batches, adapter=ADAPTER, checkpoint=place)

    for number in (1 << 63, -1, 1.5, True):
        with pytest.raises(mf.MultiflowError, match="make no sense"):
            run(batches=number)
    with pytest.raises(mf.MultiflowError, match="1000000000 batches, .* 4"):
        run(batches=10**9)
    with pytest.raises(mf.MultiflowError, match=r"'text.0' has shape \(1,\), .* \(16,\)"):
        run(tensors=tensors | {"input_norm/text.0": torch.zeros(1, dtype=torch.float64)})
    with pytest.raises(mf.MultiflowError, match="holds NaN or Inf"):
        run(tensors=tensors | {"input_norm/text.0": torch.full((16,), torch.nan, dtype=torch.float64)})


# published torch files


def published(path: Path, **more: torch.Tensor) -> Path:
    content = {"a.weight_pruning_mask": torch.eye(40), **more}
    torch.save(content, path)
    return path


def test_a_published_file_that_was_altered_is_noticed(tmp_path):
    path, random_ = published(tmp_path / "masks.pth"), random.Random(0)
    whole, before = path.read_bytes(), mf.Masks.load(path)
    noticed = 0
    for _ in range(FLIPS):
        data = bytearray(whole)
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        path.write_bytes(data)
        try:
            assert mf.Masks.load(path) == before  # padding and dates of the archive hold nothing
        except mf.MultiflowError:
            noticed += 1
    assert noticed > FLIPS / 2


def test_an_entry_that_is_marked_as_a_folder_is_noticed(tmp_path):
    """One bit, in the directory of the archive: torch then gives what was in memory."""
    path = published(tmp_path / "masks.pth")
    whole, start = path.read_bytes(), zipfile.ZipFile(path).start_dir
    at, found = whole.find(b"PK\x01\x02", start), 0
    while at >= 0:
        data = bytearray(whole)
        data[at + 38] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(mf.MultiflowError, match="was altered"):
            mf.Masks.load(path)
        at, found = whole.find(b"PK\x01\x02", at + 1), found + 1
    assert found > 3


def test_sizes_are_compared_with_the_file_before_anything_is_allocated(tmp_path):
    for many in ((10**5, 10**5), (10**9, 10**9)):
        path = published(tmp_path / "masks.pth", b=torch.ones(1).expand(*many))
        for read in (mf.Masks.load, lambda path: read_torch(path, called="it", wanted="masks")):
            with pytest.raises(mf.MultiflowError, match=r"shape \(10+, 10+\), more than"):
                read(path)
    one = torch.ones(10**5)
    torch.save({f"x{i}": one.view(-1) for i in range(50)}, tmp_path / "again.pth")
    with pytest.raises(mf.MultiflowError, match="claims a tensor"):
        read_torch(tmp_path / "again.pth", called="it", wanted="masks")


def test_an_archive_that_unpacks_to_more_than_its_size(tmp_path):
    path, bomb = published(tmp_path / "masks.pth"), tmp_path / "bomb.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("masks/data/9", bytes(10**7))
    with pytest.raises(mf.MultiflowError, match="claims to unpack to more than its size"):
        mf.Masks.load(bomb)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    for read in (mf.Masks.load, mf.Stats.load, Checkpoint(pipe).load_state):
        with pytest.raises(mf.MultiflowError, match="pipe"):
            read({} if read.__name__ == "load_state" else pipe)
    with pytest.raises(mf.MultiflowError, match="it is a folder, pipe or device"):
        read_torch(pipe, called="it", wanted="masks")
    with pytest.raises(mf.MultiflowError, match="there is no such file"):
        mf.Stats.load(tmp_path / "gone")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(("m_0.8.pth", None), ("v1.0.25.pth", None), ("m_0.5.pth", None), ("epoch20.pth", None)),
        *(("top-20-words.pth", None), ("m_0.2.pth", "0.2"), ("xvlm.20%.pth", "20%"), ("20pct/masks.pth", "20pct")),
        ("a_sparsity_20.th", "sparsity_20"),
        *(("mask-s20.pth", "s20"), ("mask.2.pth", ".2"), ("Pruned20-base.pth", "Pruned20")),
    ],
)
def test_inverted_published_masks_are_noticed_by_what_their_path_says(name, said, tmp_path):
    mask = torch.rand(40, 50).argsort(dim=1) < 10  # keeps 20 %
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save({"a.weight_pruning_mask": mask}, path)
    if said is None:
        assert mf.Masks.load(path).sparsity == 0.8
        return
    with pytest.warns(UserWarning, match=rf"says {re.escape(said)}, and its masks keep 0.20 .* inverted=True"):
        mf.Masks.load(path)
    turned = mf.Masks.load(path, inverted=True)
    assert torch.equal(turned["a"], ~mask)
    assert mf.Masks.load(turned.save(tmp_path / "anew.safetensors"), 0.2) == turned


def test_masks_of_another_share_than_was_said(tmp_path):
    torch.save({"a.weight_pruning_mask": torch.rand(40, 50).argsort(dim=1) < 10}, tmp_path / "m.pth")
    assert mf.Masks.load(tmp_path / "m.pth", 0.79).sparsity == 0.8
    for share, said in [(0.2, r"80 % of the weights, not 20 % .*they are inverted"), (0.5, "give the share that they")]:
        for load in (mf.Masks.load, mf.Masks.from_pretrained):
            with pytest.raises(mf.MultiflowError, match=said):
                load(tmp_path / "m.pth", sparsity=share)


@pytest.mark.parametrize("named", [None, "chechsum"])
def test_a_json_without_its_checksum_is_noticed(tmp_path, named):
    path = write_facts(tmp_path / "x.json", {"a": 1})
    value = json.loads(path.read_text())
    sum_ = value.pop("checksum")
    path.write_text(json.dumps(value | ({named: sum_} if named else {}), indent=2) + "\n")
    with pytest.raises(mf.MultiflowError, match="was altered"):
        read_facts(path, "result", "run again")


def test_a_torch_file_in_memory_of_its_own_is_whole(tmp_path):
    data = io.BytesIO()
    torch.save({"a": torch.ones(3, 4).T, "b": torch.arange(4).expand(1, 4)}, data)
    (tmp_path / "x.pth").write_bytes(data.getvalue())
    assert read_torch(tmp_path / "x.pth", called="it", wanted="it")["a"].shape == (4, 3)


# lines of which none may be lost


def lines_of(*values: dict[str, Any]) -> list[str]:
    lines = [""]
    for value in values:
        lines.append(next_line(value, lines[-1]))
    return lines[1:]


THREE = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2}, {"step": 3, "name": "a"}]


def test_lines_are_read_as_they_were_written_and_a_torn_end_is_left_out():
    lines = lines_of(*THREE)
    for text, found in (
        ("", []),
        ("".join(lines), THREE),
        ("".join(lines)[:-1], THREE),  # the end of the last line alone is missing
        ("".join(lines)[:-9], THREE[:2]),
        ("".join(lines[:2]), THREE[:2]),  # as after a kill
        ("".join(json.dumps(value) + "\n" for value in THREE), THREE),  # of an older version
    ):
        assert read_lines(text, "it", "fix") == found


@pytest.mark.parametrize("lost", [0, 1])
def test_a_line_that_is_lost_is_noticed_at_the_next_one(lost):
    lines = lines_of(*THREE)
    del lines[lost]
    with pytest.raises(mf.MultiflowError, match=f"a line is missing before line {lost + 1} of it; fix"):
        read_lines("".join(lines), "it", "fix")


def test_lines_in_another_order_twice_or_of_another_file_are_noticed():
    lines, others = lines_of(*THREE), lines_of({"step": 0}, *THREE)
    for wrong in (
        [lines[1], lines[0], lines[2]],
        [*lines[:2], *lines[1:]],
        [*lines[:2], others[3]],
        [*lines[:2], json.dumps(THREE[2]) + "\n"],
        [json.dumps(THREE[0]) + "\n", *lines[1:]],
    ):
        with pytest.raises(mf.MultiflowError, match="missing"):
            read_lines("".join(wrong), "it", "fix")


def test_a_text_as_long_as_a_checksum_is_none(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"source": "x/" * 32}))
    assert read_facts(tmp_path / "a.json", "it", "fix") == {"source": "x/" * 32}


def test_one_tensor_is_read_as_it_was_written(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3, dtype=torch.bfloat16), "c": torch.zeros(0, 4)}
    path = write_tensors(tmp_path / "t.safetensors", tensors, {"is": "a test"})
    for name, tensor in tensors.items():
        read = read_one(path, name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
    with pytest.raises(KeyError):
        read_one(path, "d")
