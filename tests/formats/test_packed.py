"""Packed files: what goes in comes out bit for bit, sizes are those of the format, damage is noticed."""

from __future__ import annotations

import math
import runpy
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

import multiflow as mf
from multiflow.base.artifacts import SIGNS, read_tensors, write_tensors
from multiflow.base.packed import FILE, VALUES, decode, encode, packed_parts, read_packed, write_packed
from multiflow.formats import export, unpack
from multiflow.formats.packed import pack_folder
from tests.conftest import Run

ROOT = Path(__file__).parents[2]
FLOATS = ["bf16", "fp16", "fp32"]


def sparse(shape: tuple[int, ...], dtype: torch.dtype, share: float = 0.7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=generator)
    return dense.masked_fill(torch.rand(shape, generator=generator) < share, 0.0).to(dtype)


def bits(tensor: Tensor) -> bytes:
    return tensor.flatten().clone().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    values=st.sampled_from(FLOATS),
    compress=st.sampled_from(["none", "zlib"]),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_float_codings_are_lossless(shape, values, compress, share):
    tensor = sparse(tuple(shape), VALUES[values], share)
    tensor.view(-1)[:1] = -0.0
    again = decode(*encode(tensor, values, compress))
    assert (again.dtype, again.shape, bits(again)) == (tensor.dtype, tensor.shape, bits(tensor))


@pytest.mark.parametrize("values", VALUES)
def test_other_dtypes_are_rounded_and_come_back_as_they_were(values):
    tensor = sparse((7, 33), torch.float64)
    again = decode(*encode(tensor, values, "none"))
    assert again.dtype == torch.float64
    assert torch.equal(again == 0, (tensor == 0) | (again == 0))
    if values == "int8":
        assert ((again - tensor).abs() <= tensor.abs().amax(dim=1, keepdim=True) / 254 * 1.001).all()
    else:
        assert torch.equal(again, tensor.to(VALUES[values]).double())


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("compress", ["none", "zlib"])
def test_the_reader_in_the_documents_agrees(tmp_path, values, compress):
    tensor = sparse((5, 13), torch.float32 if values == "int8" else VALUES[values])
    path = write_packed(tmp_path / "packed.safetensors", {"w": tensor, "b": torch.ones(3)}, values, compress)
    theirs = runpy.run_path(str(ROOT / "docs/packed_reader.py"))["read"](str(path))
    assert set(theirs) == {"w", "b"}
    assert np.array_equal(theirs["w"].astype(np.float32), read_packed(path)["w"].float().numpy())


HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_what_came_in_two_bytes_is_stored_in_two_and_comes_back_wide(tmp_path, kind, wide):
    """As in a model whose file is in float16, which is computed with in float32."""
    of = torch.finfo(HALVES[kind])
    short = torch.tensor([1 + of.eps, -0.0, math.inf, of.smallest_normal]).to(HALVES[kind])
    tensors = {"norm": short.to(wide), "whole": torch.arange(4), "w": sparse((8, 8), HALVES[kind]).to(wide)}
    path = write_packed(tmp_path / "p.safetensors", tensors, "fp32", "zlib")
    assert load_torch(path)["norm"].dtype == HALVES[kind]
    for name, again in read_packed(path).items():
        assert (again.dtype, bits(again)) == (tensors[name].dtype, bits(tensors[name]))
    dense = next(part for part in packed_parts(path) if part.part == "dense")
    assert dict(dense.types) == {kind: 8, "int64": 32}
    assert dense.dense == 4 * wide.itemsize + 32
    theirs = runpy.run_path(str(ROOT / "docs/packed_reader.py"))["read"](str(path))["norm"]
    assert np.array_equal(theirs, short.to(wide).numpy())
    assert theirs.dtype.itemsize == wide.itemsize


def test_float32_stays_unless_told(tmp_path):
    norm, far = torch.randn(64), torch.tensor([1e6, 1.0])
    tensors = {"norm": norm, "far": far, "w": sparse((8, 8), torch.float32)}
    same = write_packed(tmp_path / "same", tensors, "bf16", "zlib")
    assert (load_torch(same)["norm"].dtype, bits(read_packed(same)["norm"])) == (torch.float32, bits(norm))
    for rest, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        path = write_packed(tmp_path / rest, tensors, "bf16", "zlib", rest=rest)
        assert load_torch(path)["norm"].dtype == kind
        assert torch.equal(read_packed(path)["norm"], norm.to(kind).float())
        assert read_packed(path)["norm"].dtype == torch.float32
    assert torch.equal(read_packed(path)["far"], far)  # float16 does not hold it: it stays as it is


@pytest.mark.parametrize("narrowed", [5, {"b": "int8"}, {"b": ["float32"]}, {"w": "float32"}, {"b": "float32"}])
def test_headers_that_widen_what_is_not_there_or_not_short(tmp_path, narrowed):
    coding = {"shape": [2, 2], "dtype": "bfloat16", "values": "bf16", "count": 0, "compress": "none"}
    stored = {"w.bitmap": torch.zeros(1, dtype=torch.uint8), "w.values": torch.zeros(0, dtype=torch.uint8)}
    path = tmp_path / "p.safetensors"
    header = {"packed": 1, "codings": {"w": coding}, "narrowed": narrowed}
    write_tensors(path, {**stored, "b": torch.ones(3)}, header)
    with pytest.raises(mf.MultiflowError, match="damaged"):
        read_packed(path)


def test_a_packed_folder_of_a_model_in_two_bytes_is_smaller_than_the_dense_one(run: Run, tiny: Path, tmp_path: Path):
    mf.load_model(tiny).half().save_pretrained(tmp_path / "dense")
    wide = mf.load_model(tmp_path / "dense").float()  # as a user computes with it on a CPU
    masks = mf.prune(wide, "magnitude-layer", 0.5).masks[0.5]
    one = export(wide, masks, tmp_path / "one", values="fp16", compress="none")
    written = sum(part.size for part in packed_parts(one / FILE) if part.part != "header")  # most, of one so tiny
    assert written < 0.8 * 2 * sum(weight.numel() for weight in wide.parameters())
    masks.apply_(wide)
    for (name, ours), theirs in zip(mf.load_model(one).named_parameters(), wide.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(ours.dtype)), name
    # one in float32 says what would halve the rest, and does it when told
    mf.prune(mf.load_model(tiny), "magnitude-layer", 0.5).masks[0.5].save(tmp_path / "mask.safetensors")
    out = run("export", tiny, "--mask", "mask.safetensors", "--out", "wide")
    told = run("export", tiny, "--mask", "mask.safetensors", "--out", "short", "--rest", "bf16")
    assert "--rest bf16" in out.out
    assert "--rest bf16" not in told.out
    assert "--rest bf16" in run("show", "wide").out
    assert "tensors with few zeros: bfloat16" in run("show", "short").out
    assert (tmp_path / "short" / FILE).stat().st_size < (tmp_path / "wide" / FILE).stat().st_size
    assert "bf15" in run("export", tiny, "--mask", "mask.safetensors", "--out", "x", "--rest", "bf15").error
    refused = run("export", tiny, "--mask", "mask.safetensors", "--out", "x", "--rest", "bf16", "--format", "folder")
    assert "--rest" in refused.error


def test_what_has_few_zeros_is_stored_as_it_is(tmp_path):
    tensors = {"dense": torch.randn(4, 4), "bias": torch.zeros(9), "ids": torch.zeros(3, 3, dtype=torch.int64)}
    path = write_packed(tmp_path / "p.safetensors", {**tensors, "w": sparse((8, 8), torch.float16)}, "fp16", "zlib")
    again = read_packed(path)
    assert set(load_file(path)) == {*tensors, "w.bitmap", "w.values"}
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(("sparsity", "plain", "compressed"), [(0.75, 0.32, 0.24), (0.9, 0.17, 0.11)])
def test_sizes(tmp_path, sparsity, plain, compressed):
    tensor = sparse((512, 768), torch.bfloat16, sparsity) * 0.02
    dense = tensor.numel() * 2
    assert write_packed(tmp_path / "a", {"w": tensor}, "bf16", "none").stat().st_size < plain * dense
    assert write_packed(tmp_path / "b", {"w": tensor}, "bf16", "zlib").stat().st_size < compressed * dense


@pytest.mark.parametrize("compress", ["none", "zlib"])
def test_every_altered_byte_is_noticed(tmp_path, compress):
    path = write_packed(
        tmp_path / "p.safetensors", {"w": sparse((6, 16), torch.bfloat16), "b": torch.ones(3)}, "bf16", compress
    )
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(mf.MultiflowError):
            read_packed(path)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(mf.MultiflowError, match="p.safetensors"):
            read_packed(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"packed": 2}, "format 2"),
        (
            {
                "codings": {
                    "w": {
                        "shape": [2**40, 2**20],
                        "dtype": "bfloat16",
                        "values": "bf16",
                        "count": 1,
                        "compress": "none",
                    }
                }
            },
            "'w'",
        ),
        (
            {"codings": {"w": {"shape": [-1], "dtype": "bfloat16", "values": "bf16", "count": 1, "compress": "none"}}},
            "'w'",
        ),
        ({"codings": {"w": 5}}, "'w'"),
        ({"codings": []}, "damaged"),
    ],
)
def test_headers_that_say_other_things(tmp_path, change, said):
    path = write_packed(tmp_path / "p.safetensors", {"w": sparse((4, 4), torch.bfloat16)}, "bf16", "none")
    stored = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    write_tensors(path, stored, {"packed": 1, "codings": {}} | change)  # its checksums fit: what is claimed counts
    with pytest.raises(mf.MultiflowError, match=said):
        read_packed(path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [8, 4]},
        {"shape": [3, 4]},
        {"shape": [4, 5]},
        {"shape": [True, 4]},
        {"count": 5},
        {"count": 3},
        {"values": "int4"},
        {"values": "fp32"},
        {"values": "int8"},
        {"dtype": "int64"},
        {"dtype": "quint8"},
        {"dtype": "float8_e4m3fn"},
        {"compress": "lz77"},
        {"compress": "zlib"},
        {"compress": "zstd"},
        {"more": 1},
    ],
    ids=str,
)
def test_codings_that_do_not_fit_what_is_stored(tmp_path, change):
    """Bits beyond the matrix, scales that are not there, other sizes, codings that nobody knows: all signed anew."""
    dense = torch.eye(4).bfloat16()
    path = write_packed(tmp_path / "p.safetensors", {"w": dense}, "bf16", "none")
    stored = load_torch(path)
    coding = {"shape": [4, 4], "dtype": "bfloat16", "values": "bf16", "count": 4, "compress": "none"}
    write_tensors(path, stored, {"packed": 1, "codings": {"w": coding}})
    assert torch.equal(read_packed(path)["w"], dense)
    write_tensors(path, stored, {"packed": 1, "codings": {"w": coding | change}})
    with pytest.raises(mf.MultiflowError, match=r"p\.safetensors") as refused:
        read_packed(path)
    assert "'w'" in str(refused.value) or "zstandard" in str(refused.value)


@pytest.mark.parametrize("version", [0, 2, 99, "1", True, None])
def test_other_versions_of_the_packing(tmp_path, version):
    path = tmp_path / "p.safetensors"
    write_tensors(path, {"b": torch.ones(3)}, {"packed": version, "codings": {}})
    with pytest.raises(mf.MultiflowError, match=f"format {version!r}, this version reads format 1"):
        read_packed(path)


def test_a_tensor_that_is_there_twice(tmp_path):
    path = write_packed(tmp_path / "p.safetensors", {"w": torch.eye(4)}, "fp32", "none")
    coding = {"shape": [4, 4], "dtype": "float32", "values": "fp32", "count": 4, "compress": "none"}
    write_tensors(path, {**load_torch(path), "w": torch.ones(4, 4)}, {"packed": 1, "codings": {"w": coding}})
    with pytest.raises(mf.MultiflowError, match="both packed and dense"):
        read_packed(path)


def test_a_folder_cut_at_every_tenth(model, tmp_path):
    folder = export(model, mf.prune(model, "magnitude", sparsity=0.75).masks[0.75], tmp_path / "p")
    whole = (folder / FILE).read_bytes()
    for tenth in range(10):
        (folder / FILE).write_bytes(whole[: len(whole) * tenth // 10])
        for door in (mf.load_model, lambda place: unpack(place, tmp_path / "out")):
            with pytest.raises(mf.MultiflowError, match=FILE):
                door(folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["packed", "folder"])
def test_masks_of_other_weights_and_weights_left_out_are_said(model, tmp_path, format):
    masks = mf.prune(model, "magnitude", sparsity=0.75).masks[0.75]
    other = ViTForImageClassification(model.config)
    with pytest.warns(UserWarning, match="made for other weights"):
        export(other, masks, tmp_path / "a", format)
    changing = replace(masks, settings={**masks.settings, "changes_weights": True, "method": "alps"})
    with pytest.warns(UserWarning, match=r"'alps' belong to changed weights.*result\.weights"):
        export(model, changing, tmp_path / "b", format)
    masks.apply_(applied := deepcopy(model))
    export(applied, changing, tmp_path / "c", format)  # what must be zero is zero: it holds them


def test_entries_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(mf.MultiflowError, match=r"'w'.*not finite"):
        write_packed(tmp_path / "p", {"w": torch.tensor([[math.inf, 0.0]])}, "bf16", "none")
    with pytest.raises(mf.MultiflowError, match="not finite as fp16"):
        write_packed(tmp_path / "p", {"w": torch.tensor([[1e6, 0.0]])}, "fp16", "none")


@pytest.fixture(scope="module")
def model() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3)).eval()


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8"])
def test_a_model_goes_out_and_comes_back(model, tmp_path, values):
    result = mf.prune(model, "magnitude", sparsity=0.75)
    masks, before = result.masks[0.75], {name: bits(p) for name, p in model.named_parameters()}
    folder = export(model, masks, tmp_path / "small", values=values)
    assert before == {name: bits(p) for name, p in model.named_parameters()}
    ordinary = mf.load_model(unpack(folder, tmp_path / "ordinary"))
    packed = mf.load_model(folder)
    masks.apply_(model_copy := mf.load_model(tmp_path / "ordinary"))
    assert masks.is_applied(ordinary)
    for (name, ours), theirs, kept in zip(
        ordinary.named_parameters(), packed.parameters(), model_copy.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
        assert torch.equal(ours, kept), name
    if values == "fp32":
        result.apply_(model, 0.75)
        assert {n: bits(p) for n, p in model.named_parameters()} == {n: bits(p) for n, p in packed.named_parameters()}


def test_bad_input(model, tmp_path):
    masks = mf.prune(model, "magnitude", sparsity=0.75).masks[0.75]
    for wrong, said in [
        ({"values": "bf17"}, "did you mean 'bf16'"),
        ({"format": "packd"}, "packed"),
        ({"compress": "lz"}, "zlib"),
    ]:
        with pytest.raises(mf.MultiflowError, match=said):
            export(model, masks, tmp_path / "x", **wrong)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(mf.MultiflowError, match="already holds"):
        export(model, masks, tmp_path / "full")
    with pytest.raises(mf.MultiflowError, match="packed.safetensors"):
        unpack(tmp_path / "full", tmp_path / "y")


def test_the_command_line(run: Run, tiny: Path):
    assert run("prune", tiny, "--method", "magnitude", "--sparsity", 0.75, "--out", "pruned").code == 0
    words = ("export", tiny, "--mask", "pruned/mask-0.75.safetensors", "--values", "fp32")
    assert "MB" in run(*words, "--out", "packed").out
    names = {path.name for path in Path("packed").iterdir()}
    assert {"packed.safetensors", "config.json", "tokenizer.json"} <= names
    assert run("show", "packed").code == 0
    packed, masks = mf.load_model("packed"), mf.Masks.load("pruned/mask-0.75.safetensors")
    assert masks.is_applied(packed)
    assert "bf17" in run(*words[:-1], "bf17", "--out", "other").error
    assert not Path("other").exists()


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_show_tells_the_size_of_a_packed_folder_by_part(values, run: Run, tiny: Path, tmp_path: Path):
    model = mf.load_model(tiny)
    export(model, mf.prune(model, "magnitude-layer", 0.75).masks[0.75], tmp_path / "small", values=values)
    parts = packed_parts(tmp_path / "small" / FILE)
    assert sum(part.size for part in parts) == (tmp_path / "small" / FILE).stat().st_size
    unpacked = read_packed(tmp_path / "small" / FILE).values()
    assert sum(part.dense for part in parts) == sum(x.numel() * x.element_size() for x in unpacked)
    assert ("scales" in {part.part for part in parts}) == (values == "int8")
    shown = run("show", tmp_path / "small").out
    for part in parts:
        assert part.part in shown
    assert f"{FILE} by part" in shown


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool, torch.complex64])
def test_types_that_are_not_packed_are_stored_as_they_are(tmp_path, dtype):
    from multiflow.base.packed import read_packed, write_packed

    tensor = torch.zeros(4, 6).to(dtype)
    found = read_packed(write_packed(tmp_path / "packed.safetensors", {"a": tensor}, "bf16", "none"))["a"]
    assert (found.dtype, found.shape) == (dtype, tensor.shape)


def test_what_lies_beside_weights_is_copied_only_if_it_can_be_a_config(tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    source.mkdir()
    save_file({"weight": torch.zeros(4, 4)}, source / "model.safetensors")
    with (source / "config.json").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(mf.MultiflowError, match=r"config\.json' has 8\.6 GB"):
        pack_folder(source, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("read", [mf.load_model, lambda folder: mf.unpack(folder, folder.parent / "again")])
def test_a_config_that_is_another_one_is_noticed(read, tmp_path, tiny):
    model = mf.load_model(tiny)
    folder = mf.export(model, mf.prune(model, "magnitude", 0.75).masks[0.75], tmp_path / "packed")
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")  # which changes nothing but the file
    with pytest.raises(mf.MultiflowError, match="config.json' is not the file that .* was written with"):
        read(folder)
    config.unlink()
    with pytest.raises(mf.MultiflowError):
        read(folder)


@pytest.mark.parametrize("said", [5, ["config.json"], {"config.json": 5}, {"../config.json": "1 bytes, 0"}])
def test_what_a_stranger_vouches_for_is_read_as_carefully(said, tmp_path):
    path = write_packed(tmp_path / "p.safetensors", {"w": sparse((4, 4), torch.bfloat16)}, "bf16", "none")
    tensors, header = read_tensors(path, "it")
    write_tensors(path, tensors, {**{k: v for k, v in header.items() if k not in SIGNS}, "beside": said})
    with pytest.raises(mf.MultiflowError, match="damaged .it vouches for"):
        read_packed(path)
