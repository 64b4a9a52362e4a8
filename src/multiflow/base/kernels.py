"""The kernels of the sparse runtime: one C++ file, compiled on first use for this processor, checked, and kept.

There is no build step of the package. The first call that wants kernels compiles ``kernels.cpp`` with the compiler that
is there (``$CXX``, ``c++``, ``g++`` or ``clang++``) into the user's cache, under a name made of the file, the compiler
and what the processor can. Before anything else uses them they compute a small product; kernels that get it wrong are
not used. Without a compiler nothing is lost but speed: what calls `kernels` computes with torch then.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-w")
NATIVE = {"x86_64": "-march=native", "AMD64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
LONGEST = 120  # seconds that a compiler may take
LEVELS = {2: "AVX-512 with VNNI", 1: "AVX2", 0: "no vector instructions of ours"}
PLAIN = ("-mno-avx2", "-mno-fma", "-mno-avx512f")
FORCED = ("native", "plain", "none")
"""What ``MULTIFLOW_KERNELS`` may say: kernels for this processor, for one without vector instructions, or none."""
KIND_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
MOST_LOOKED, MOST_STEPS = 2**16, 8  # columns and steps of blocks, as in kernels.cpp
MOST_COLUMNS = 1_000_000  # of a product in whole numbers, whose sums are 32 bits wide

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


class Arguments(ctypes.Structure):
    """Sizes and addresses of a packed matrix, as the kernels read them."""

    rows: int
    cols: int
    _fields_ = tuple((name, _LONG) for name in ("rows", "cols", "bits", "starts", "values", "scales", "kind"))


class LookedArguments(ctypes.Structure):
    """Sizes and addresses of the blocks of ``look``, as the kernel reads them."""

    rows: int
    cols: int
    _fields_ = tuple(
        (name, _LONG) for name in ("rows", "cols", "steps", "blocks", "starts", "columns", "values", "scales")
    )


class NoKernelsError(MultiflowError):
    """There are no kernels on this machine; the message says why."""


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix ``(rows, cols)`` with many zeros, as kernels read it.

    Args:
        rows: number of outputs.
        cols: number of inputs.
        bits: int64 ``(rows, ceil(cols / 64))``; bit ``b`` of word ``w``, lowest first, says whether column
            ``64 w + b`` is kept.
        starts: int64 ``(rows + 1,)``; where the values of each row start, and where the last one ends.
        values: the kept values in this order, float32, bfloat16 or int8, and 64 bytes more.
        scales: float32 ``(rows,)``, of int8 alone: a value is int8 times the scale of its row.
    """

    rows: int
    cols: int
    bits: Tensor
    starts: Tensor
    values: Tensor
    scales: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(t.nbytes for t in (self.bits, self.starts, self.values, self.scales) if t is not None)

    @property
    def arguments(self) -> Arguments:
        """What the kernels are given of it; its tensors must outlive the call."""
        return Arguments(self.rows, self.cols, *self.addresses, KIND_NUMBERS[self.values.dtype])

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Where bits, starts, values and scales lie; 0 for scales that are None."""
        scaled = 0 if self.scales is None else self.scales.data_ptr()
        return self.bits.data_ptr(), self.starts.data_ptr(), self.values.data_ptr(), scaled


@dataclass(frozen=True, eq=False)
class LookedMatrix:
    """The blocks of a packed matrix of int8, as ``look`` reads them: no bits to expand, and half as much memory again.

    Args:
        rows: number of outputs.
        cols: number of inputs, at most 65,536.
        steps: times two weights of a row that a block of 16 x 16 holds.
        blocks: uint8, 48 a step: weights of 16 rows, two of each, and their columns in four bits each.
        starts: int32 ``(rows + 1,)``; where what did not fit of each row starts.
        columns: int16, the bits of its columns.
        values: int8, its values.
        scales: float32 ``(rows,)``.
    """

    rows: int
    cols: int
    steps: int
    blocks: Tensor
    starts: Tensor
    columns: Tensor
    values: Tensor
    scales: Tensor

    @property
    def arguments(self) -> LookedArguments:
        """What the kernel is given of it; its tensors must outlive the call."""
        places = (one.data_ptr() for one in (self.blocks, self.starts, self.columns, self.values, self.scales))
        return LookedArguments(self.rows, self.cols, self.steps, *places)


class Kernels:
    """The compiled kernels; each is a function of the `Arguments` of a packed matrix on the CPU.

    ``few``, ``few8``, ``look`` and ``walk`` take inputs ``(..., cols)``, float32 and contiguous, and a bias
    ``(rows,)``, float32, or None; they give ``(..., rows)``. ``few8`` is for int8 values and rounds the inputs to 8
    bits; ``look``, which takes `LookedArguments`, sums the same whole numbers.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.path = path
        self.level: int = library.multiflow_level()
        self.has_threads = bool(library.multiflow_threads())
        product = (_POINTER, _POINTER, _LONG, _POINTER, _POINTER, _INT)
        self._products = {name: getattr(library, f"multiflow_{name}") for name in ("few", "few8", "look", "walk")}
        for function in self._products.values():
            function.argtypes, function.restype = product, None
        self._beyond, self._fill = library.multiflow_look_beyond, library.multiflow_look_fill
        self._beyond.argtypes, self._beyond.restype = (_POINTER, _POINTER), None
        self._fill.argtypes, self._fill.restype = (_POINTER, _LONG, *(4 * (_POINTER,))), None
        self._expand = library.multiflow_expand
        self._expand.argtypes, self._expand.restype = (_POINTER, _LONG, _POINTER, _LONG, _LONG, _POINTER), _LONG
        self._unpack = library.multiflow_unpack
        self._unpack.argtypes, self._unpack.restype = (_POINTER, _POINTER, _INT, _INT), None

    def looked(self, matrix: PackedMatrix) -> LookedMatrix | None:
        """Return the blocks of a matrix for ``look``; None for one that is not of int8, or is too wide."""
        if matrix.scales is None or matrix.cols > MOST_LOOKED:
            return None
        packed = matrix.arguments
        beyond = torch.zeros(MOST_STEPS, dtype=torch.int64)
        self._beyond(ctypes.addressof(packed), beyond.data_ptr())
        squares = -(-matrix.rows // 16) * -(-matrix.cols // 16)
        cost = [squares * steps + left / 3.4 for steps, left in enumerate(beyond.tolist(), 1)]  # as measured with AVX2
        steps = 1 + cost.index(min(cost))
        left = int(beyond[steps - 1])
        blocks = torch.zeros(48 * steps * squares, dtype=torch.uint8)
        starts, columns, values = (
            torch.zeros(size, dtype=kind)
            for size, kind in ((matrix.rows + 1, torch.int32), (left, torch.int16), (left, torch.int8))
        )
        places = (one.data_ptr() for one in (blocks, starts, columns, values))
        self._fill(ctypes.addressof(packed), steps, *places)
        return LookedMatrix(matrix.rows, matrix.cols, steps, blocks, starts, columns, values, matrix.scales)

    def product(self, name: str, matrix: Arguments | LookedArguments, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply: ``few``, ``few8``, ``walk``, or ``look`` with the arguments of a `LookedMatrix`."""
        *before, cols = inputs.shape
        out = torch.empty(*before, matrix.rows)
        tokens = inputs.numel() // cols if cols else math.prod(before)
        there = 0 if bias is None else bias.data_ptr()
        where = ctypes.addressof(matrix)
        self._products[name](where, inputs.data_ptr(), tokens, there, out.data_ptr(), torch.get_num_threads())
        return out

    def expand(self, bitmap: np.ndarray, size: int, values: np.ndarray, stored: int, width: int) -> np.ndarray | None:
        """Return a tensor of a packed file as whole numbers; None if the bitmap marks others than are stored.

        Args:
            bitmap: uint8, ``ceil(size / 8)`` of them, highest bit first.
            size: number of entries.
            values: uint8, ``stored * width`` of them in planes.
            stored: number of entries that are stored.
            width: bytes of an entry: 1, 2 or 4.
        """
        out = np.empty(size, f"<u{width}")
        places = [one.ctypes.data for one in (bitmap, values, out)]
        return out if self._expand(places[0], size, places[1], stored, width, places[2]) == stored else None

    def unpack(self, matrix: Arguments, halves: bool = False) -> Tensor:
        """Return the dense matrix, float32; ``halves`` gives bfloat16 and is for bfloat16 values."""
        out = torch.empty(matrix.rows, matrix.cols, dtype=torch.bfloat16 if halves else torch.float32)
        self._unpack(ctypes.addressof(matrix), out.data_ptr(), int(halves), torch.get_num_threads())
        return out


@cache
def kernels() -> Kernels:
    """Return the kernels for this processor, compiled when first asked for.

    Raises:
        NoKernelsError: there is no compiler, it fails, or what it made does not compute what it should; or the
            environment variable ``MULTIFLOW_KERNELS`` says ``none``, or what is none of `FORCED`.
    """
    return build(_options())


@cache
def compiled() -> Kernels:
    """Return the kernels for this processor if they are compiled already: for what is not worth that time.

    Raises:
        NoKernelsError: they are not, or for a reason of `kernels`.
    """
    return build(_options(), compiles=False)


def _options() -> Sequence[str]:
    wanted = os.environ.get("MULTIFLOW_KERNELS") or FORCED[0]
    if wanted not in FORCED:
        raise NoKernelsError(f"MULTIFLOW_KERNELS is '{wanted}'; expected {', '.join(FORCED[:-1])} or {FORCED[-1]}")
    if wanted == "none":
        raise NoKernelsError("MULTIFLOW_KERNELS is 'none', which asks for torch alone; unset it")
    return PLAIN if wanted == "plain" and NATIVE.get(platform.machine(), "").startswith("-march") else ()


def build(options: Sequence[str] = (), folder: Path | None = None, *, compiles: bool = True) -> Kernels:
    """Compile the kernels, or take them from the cache, and check them.

    Args:
        options: more options of the compiler, such as ``-mno-avx2``.
        folder: where they are kept, by default `cache_folder`.
        compiles: whether they are compiled if they are not there.
    """
    command = compiler()
    native = [NATIVE[platform.machine()]] if platform.machine() in NATIVE else []
    threads = ["-fopenmp"]
    last = ""
    for extra in ([*native, *threads], native, threads, []):
        flags = [*FLAGS, *extra, *options]
        place = (folder or cache_folder()) / f"kernels-{_identity(command, flags)}.so"
        if compiles and not place.is_file():
            last = _compile(command, flags, place)
        if place.is_file():
            return _checked(place)
    if not compiles:
        raise NoKernelsError("the kernels are not compiled yet")
    raise NoKernelsError(f"the compiler {shlex.join(command)} cannot compile the kernels: {last}")


def compiler() -> list[str]:
    """Return the command of the C++ compiler: ``$CXX``, or the first that is found."""
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        words = shlex.split(chosen)
        if shutil.which(words[0]) is None:
            raise NoKernelsError(f"CXX names '{words[0]}', which is not there; name a C++ compiler, or unset CXX")
        return words
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise NoKernelsError(f"there is no C++ compiler ({', '.join(COMPILERS)}); install one, or set CXX")


def cache_folder() -> Path:
    """Return the folder of compiled kernels: ``$MULTIFLOW_CACHE``, or in the cache of the user; made if need be."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(os.environ.get("MULTIFLOW_CACHE") or Path(home) / "multiflow")
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NoKernelsError(f"'{place}' cannot hold compiled kernels ({error}); set MULTIFLOW_CACHE") from error
    return place


def _identity(command: list[str], flags: list[str]) -> str:
    """Name what was compiled, by what, and for which processor: folders of users are shared among machines."""
    version = subprocess.run([*command, "--version"], capture_output=True, timeout=LONGEST, check=False).stdout
    parts = [SOURCE.read_bytes(), version, " ".join(flags).encode(), processor().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


@cache
def processor() -> str:
    """Say what the processor is and can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    described = [
        line for line in lines if line.split("\t")[0].strip() in ("model name", "flags", "Features", "CPU part")
    ]
    return "\n".join([platform.machine(), platform.processor(), *described])


def _compile(command: list[str], flags: list[str], place: Path) -> str:
    """Compile to a temporary file and rename it; return what the compiler said."""
    with tempfile.TemporaryDirectory(dir=place.parent) as room:
        made = Path(room) / "kernels.so"
        try:
            ran = subprocess.run(
                [*command, *flags, str(SOURCE), "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=LONGEST,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        if ran.returncode == 0 and made.is_file():
            made.replace(place)
        return " ".join(ran.stderr.split())[:300] or f"exit code {ran.returncode}"


def _checked(path: Path) -> Kernels:
    """Load kernels, and compare a small product of each with torch's."""
    try:
        found = Kernels(path)
    except (OSError, AttributeError) as error:
        raise NoKernelsError(f"the compiled kernels '{path}' cannot be loaded ({error}); delete the file") from error
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(5, 150, generator=generator).bfloat16().float()
    dense *= torch.rand(5, 150, generator=generator) < 0.3
    inputs = torch.randn(19, 150, generator=generator)
    truth = inputs.double() @ dense.double().T
    for kind in KIND_NUMBERS:
        matrix = pack_matrix(dense, kind)
        near = 1e-4 if kind != torch.int8 else 0.5
        names = ("few", "walk") if kind != torch.int8 else ("few", "few8", "walk")
        found_all = {name: found.product(name, matrix.arguments, inputs, None) for name in names}
        if looked := found.looked(matrix):
            found_all["look"] = found.product("look", looked.arguments, inputs, None)
        found_all["unpack"] = inputs @ found.unpack(matrix.arguments, kind == torch.bfloat16).float().T
        for name, out in found_all.items():
            if not torch.allclose(out.double(), truth, rtol=0, atol=near):
                raise NoKernelsError(
                    f"the compiled kernel '{name}' gives wrong results on this machine; delete '{path}', "
                    "or set CXX to another compiler"
                )
    return found


def pack_matrix(dense: Tensor, kind: torch.dtype, *, whole: bool = False) -> PackedMatrix:
    """Pack a matrix; entries that are zero are dropped.

    Args:
        dense: floating point ``(rows, cols)``.
        kind: of the values: float32, bfloat16 (rounded to nearest) or int8 (one scale a row).
        whole: whether zeros are kept as well: a dense matrix, for the sake of its short values.
    """
    rows, cols = dense.shape
    dense = dense.detach().cpu().float()
    scales = None
    if kind == torch.int8:
        scales = (dense.abs().amax(dim=1) if cols else dense.new_zeros(rows)) / 127
        rounded = (dense / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-127, 127)
    else:
        rounded = dense.to(kind)
    kept = torch.ones_like(rounded, dtype=torch.bool) if whole else rounded != 0
    room = np.zeros((rows, -(-cols // 64) * 64), bool)
    room[:, :cols] = kept.numpy()
    bits = torch.from_numpy(np.packbits(room, axis=1, bitorder="little").view("<i8"))
    starts = torch.zeros(rows + 1, dtype=torch.int64)
    torch.cumsum(kept.sum(1), 0, out=starts[1:])
    values = rounded[kept].to(kind)
    behind = torch.zeros(64 // values.element_size(), dtype=kind)
    return PackedMatrix(rows, cols, bits, starts, torch.cat([values, behind]), scales)
