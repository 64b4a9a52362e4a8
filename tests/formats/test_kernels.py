"""The kernels equal a float64 oracle within rounding: every shape, kind of value, number of tokens and threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multiflow as mf
from multiflow.base import kernels
from multiflow.base.kernels import NoKernelsError, build, compiler, pack_matrix
from multiflow.base.packed import decode, expand_bits, read_packed, write_packed
from multiflow.formats.sparse_linear import multiply, unpacked, ways_of

KINDS = [torch.float32, torch.bfloat16, torch.int8]
EPSILON = torch.finfo(torch.float32).eps
OPTIONS = {
    "here": [],
    "plain": ["-O0", "-mno-avx2", "-mno-fma", "-mno-avx512f"],
    "wide": ["-O0", "-DMULTIFLOW_WIDE", "-include", str(Path(__file__).with_name("wide.h"))],
}
if "AVX512" in torch.backends.cpu.get_cpu_capability():  # where "here" is more than AVX2
    OPTIONS["narrow"] = ["-O0", "-mno-avx512f"]
"""What a processor may have -> how the compiler is told: this one, none of it, AVX-512 (emulated), and AVX2 alone."""


@pytest.fixture(scope="module", params=OPTIONS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[kernels.Kernels]:
    try:
        compiler()
    except NoKernelsError as error:
        pytest.skip(str(error))
    folder = None if request.param == "here" else tmp_path_factory.mktemp("kernels")
    threads = torch.get_num_threads()
    found = build(OPTIONS[request.param], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiflow.formats.sparse_linear.kernels", lambda: found)
        yield found
    torch.set_num_threads(threads)


def test_the_level_is_what_was_asked_for(built, request):
    level = {"plain": 0, "narrow": 1, "wide": 2}.get(request.node.callspec.params["built"])
    assert level is None or built.level == level


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 40),
    cols=st.one_of(st.integers(1, 20), st.integers(1, 300), st.sampled_from([64, 128, 192])),
    tokens=st.one_of(st.integers(1, 20), st.sampled_from([33, 64, 65, 150])),
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    kind=st.sampled_from(KINDS),
    bias=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 10),
)
def test_all_ways_equal_the_oracle(built, rows, cols, tokens, share, kind, bias, threads, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, cols, generator=generator)
    dense = dense.masked_fill(torch.rand(rows, cols, generator=generator) < share, 0.0)
    dense[seed % rows] = 0.0  # an empty row
    inputs = torch.randn(tokens, cols, generator=generator)
    added = torch.randn(rows, generator=generator) if bias else None
    torch.set_num_threads(threads)
    matrix = pack_matrix(dense, kind)
    exact = unpacked(matrix).double()  # what is stored, to the last bit
    truth = inputs.double() @ exact.T + (0 if added is None else added.double())
    sizes = inputs.double().abs() @ exact.abs().T + (0 if added is None else added.double().abs())
    rounding = (cols + 8) * EPSILON * sizes
    most = inputs.abs().amax(dim=1, keepdim=True).double()
    short = exact.abs().sum(dim=1) * most / 253  # inputs rounded to 8 bits
    half = 2**-7 * sizes  # inputs and results rounded to bfloat16
    for way in {*ways_of(kind, cols), "few"}:
        bound = rounding + (short if way == "few8" else half if way == "unpack-bf16" else 0)
        error = (multiply(way, matrix.arguments, inputs, added).double() - truth).abs()
        assert (error <= bound + 1e-30).all(), way


@settings(deadline=None, max_examples=15)
@given(rows=st.integers(0, 9), cols=st.integers(0, 140), share=st.sampled_from([0.0, 0.6, 1.0]))
@pytest.mark.parametrize("kind", KINDS)
def test_unpacking_gives_back_what_was_packed(built, kind, rows, cols, share):
    generator = torch.Generator().manual_seed(cols)
    dense = torch.randn(rows, cols, generator=generator).bfloat16().float()
    dense = dense.masked_fill(torch.rand(rows, cols, generator=generator) < share, 0.0)
    matrix = pack_matrix(dense, kind)
    slow, fast = unpacked(matrix), built.unpack(matrix.arguments)
    assert torch.equal(slow, fast)
    if kind == torch.bfloat16:
        assert torch.equal(built.unpack(matrix.arguments, halves=True).float(), dense)
    if kind == torch.int8:
        most = dense.abs().amax(dim=1, keepdim=True) if cols else 0
        assert ((slow - dense).abs() <= most / 253).all()
    else:
        assert torch.equal(slow, dense)


@settings(deadline=None, max_examples=60)
@given(
    size=st.one_of(st.integers(0, 200), st.sampled_from([64, 128, 1000])),
    width=st.sampled_from([1, 2, 4]),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 10),
)
def test_files_are_expanded_as_numpy_does_it(built, size, width, share, seed):
    generator = np.random.default_rng(seed)
    kept = generator.random(size) < share
    bitmap, stored = np.packbits(kept), int(kept.sum())
    values = generator.integers(0, 256, stored * width, "u1")
    truth = expand_bits(bitmap, size, values, stored, width)
    assert truth is not None
    assert np.array_equal(built.expand(bitmap, size, values, stored, width), truth)
    # a bitmap that marks fewer or more than are stored, or an entry behind the last one
    more = generator.integers(0, 256, (stored + 1) * width, "u1")
    assert built.expand(bitmap, size, more, stored + 1, width) is None
    if stored:
        assert built.expand(bitmap, size, values[width:], stored - 1, width) is None
    if size % 8:
        bitmap[-1] |= 1
        assert built.expand(bitmap, size, more, stored + 1, width) is None
        assert expand_bits(bitmap, size, more, stored + 1, width) is None


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 70),
    cols=st.one_of(st.integers(1, 40), st.integers(1, 300), st.sampled_from([64, 128, 192])),
    tokens=st.integers(1, 11),
    share=st.sampled_from([0.0, 0.5, 0.75, 0.9, 1.0]),
    bias=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 10),
)
def test_looking_up_sums_what_expanding_does(built, rows, cols, tokens, share, bias, threads, seed):
    """Both sum whole numbers: whatever fits into the blocks of one, and what does not."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, cols, generator=generator)
    dense = dense.masked_fill(torch.rand(rows, cols, generator=generator) < share, 0.0)
    dense[seed % rows] = 0.0  # an empty row
    dense[-1, : cols // 2] = 1.0  # and a full one, which fits into no block
    inputs = torch.randn(tokens, cols, generator=generator)
    inputs[0] *= 1e30
    added = torch.randn(rows, generator=generator) if bias else None
    torch.set_num_threads(threads)
    matrix = pack_matrix(dense, torch.int8)
    looked = built.looked(matrix)
    assert looked is not None
    ours = multiply("look", looked.arguments, inputs, added)
    sizes = inputs.abs() @ unpacked(matrix).abs().T + (0 if added is None else added.abs())
    error = (ours - multiply("few8", matrix.arguments, inputs, added)).abs()
    assert (error <= 2 * EPSILON * sizes).all()  # of the last step, where the bias is added


def test_only_whole_numbers_are_looked_up(built):
    assert built.looked(pack_matrix(torch.eye(20), torch.bfloat16)) is None
    assert built.looked(pack_matrix(torch.ones(1, 2**16 + 1), torch.int8)) is None


def test_inputs_that_are_not_finite_stay_so(built):
    dense = torch.ones(3, 70)
    for bad in (torch.inf, -torch.inf, torch.nan):
        inputs = torch.zeros(2, 70)
        inputs[1, 5] = bad
        for kind in KINDS:
            for way in {*ways_of(kind, 70), "few"} - {"unpack-bf16"}:
                matrix = pack_matrix(dense, kind)
                out = multiply(way, matrix.arguments, inputs, None)
                assert out[0].abs().max() == 0, way
                assert not out[1].isfinite().any(), way


def test_tiny_and_huge_inputs(built):
    dense = torch.ones(2, 3)
    for size in (1e-42, 1e-38, 1e-30, 1e30, 1e37):
        inputs = torch.full((1, 3), size)
        matrix = pack_matrix(dense, torch.int8)
        out = multiply("few8", matrix.arguments, inputs, None)
        assert torch.allclose(out.double(), torch.full((1, 2), 3 * size, dtype=torch.float64), rtol=0.02, atol=1e-37)


def test_kernels_are_compiled_once(built, request):
    written = built.path.stat().st_mtime_ns
    again = build(OPTIONS[request.node.callspec.params["built"]], built.path.parent)
    assert again.path == built.path
    assert again.path.stat().st_mtime_ns == written


def test_loading_takes_kernels_that_are_there_and_compiles_none(monkeypatch, tmp_path):
    path = write_packed(tmp_path / "packed.safetensors", {"a": torch.eye(40)}, "fp32", "none")
    monkeypatch.setattr("multiflow.base.packed.WORTH", 0)
    monkeypatch.setenv("MULTIFLOW_CACHE", str(tmp_path / "cache"))
    found: list[object] = []
    monkeypatch.setattr("multiflow.base.packed.decode", lambda *given: found.append(given[2]) or decode(*given))
    kernels.compiled.cache_clear()
    try:
        assert torch.equal(read_packed(path)["a"], torch.eye(40))
        assert found == [None]
        assert not list((tmp_path / "cache").glob("*"))
        build()
        assert torch.equal(read_packed(path)["a"], torch.eye(40))
        assert isinstance(found[1], kernels.Kernels)
    finally:
        kernels.compiled.cache_clear()


def test_no_compiler_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NoKernelsError, match=r"no C\+\+ compiler.*CXX"):
        build(folder=tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(NoKernelsError, match="no-such-compiler"):
        build(folder=tmp_path)


def test_a_compiler_that_fails_is_one_sentence(monkeypatch, tmp_path):
    script = tmp_path / "fails"
    script.write_text("#!/bin/sh\necho broken on purpose >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(NoKernelsError, match="broken on purpose"):
        build(folder=tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_kernels_that_compute_something_else_are_not_used(monkeypatch, tmp_path):
    try:
        compiler()
    except NoKernelsError as error:
        pytest.skip(str(error))
    other = tmp_path / "kernels.cpp"
    other.write_text(kernels.SOURCE.read_text().replace("* p.scale(r) +", "* p.scale(r) * 2 +"))
    monkeypatch.setattr(kernels, "SOURCE", other)
    with pytest.raises(NoKernelsError, match="wrong results"):
        build(["-O0"], tmp_path)


def test_a_cache_that_cannot_be_made_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MULTIFLOW_CACHE", str(tmp_path / "file" / "under"))
    with pytest.raises(NoKernelsError, match="MULTIFLOW_CACHE"):
        kernels.cache_folder()
    assert issubclass(NoKernelsError, mf.MultiflowError)
