"""The packed format: a tensor with many zeros as one bit an entry, and the values of the others.

A packed file is a safetensors file. A tensor NAME that is packed becomes, as one-dimensional uint8 tensors,

- ``NAME.bitmap``: bit ``i % 8`` (highest first, as in mask files) of byte ``i // 8`` says whether entry ``i``, counted
  row by row, is stored. One that is not stored is +0.0.
- ``NAME.values``: the stored entries in this order, little-endian. As ``bf16``, ``fp16`` or ``fp32`` all first bytes
  come first, then all second bytes and so on (byte planes, which compress better); as ``int8`` one byte each.
- ``NAME.scales``: for ``int8`` alone, one little-endian float32 a row: an entry is int8 times the scale of its row.

Each of these parts may be compressed by itself (zlib or zstd). Other tensors are stored as they are; those whose
numbers all fit into a shorter type, or that are to be rounded to one, in that type: ``narrowed`` in the header says
what they are read back as. It is an artifact like all of ours (`multiflow.base.artifacts`), whose header says beside
the checksums: the version of the packing, and the shape, dtype and coding of each packed tensor. docs/formats.md
specifies the whole.
"""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multiflow.base.artifacts import describe_file, is_described, read_tensors, write_tensors
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.kernels import Kernels, NoKernelsError, compiled
from multiflow.base.parallel import in_parallel

FORMAT = 1
FILE = "packed.safetensors"
"""What the packed file of a model folder is called."""

KEY = "packed"
"""Of the header, under which the version of the packing stands."""
BESIDE = "beside"
"""Key of a header: name of a file in the same folder -> its size and CRC-32."""
NARROWED = "narrowed"
"""Of the header: name of a tensor that is stored in a shorter type -> the dtype that it is read back as."""
SAME = "same"
"""What the rest of the tensors is stored in, if nothing else is said: they come back bit for bit."""
AGAIN = "export the model again"
VALUES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8}
"""How entries are stored -> the dtype of what is stored."""

REST = (SAME, "bf16", "fp16", "fp32")
"""What tensors that are not packed can be stored in."""

STANDS_FOR = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
UNSIGNED: dict[int, Any] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
FEW, MOST_TIMES = 2**26, 2**10  # bytes that any file may claim, and how much more than it has: more is a bomb
WORTH = 1 << 24  # entries that numpy decodes in the time that it takes to find compiled kernels
LEVEL = 6  # of zlib; of zstd 3, as its authors suggest


@dataclass(frozen=True)
class Coding:
    """How one tensor is packed.

    Args:
        shape: its sizes.
        dtype: what it is read back as, a name of torch's such as ``bfloat16``.
        values: how its entries are stored, a name of `VALUES`.
        count: how many entries are stored.
        compress: ``none``, ``zlib`` or ``zstd``.
    """

    shape: tuple[int, ...]
    dtype: str
    values: str
    count: int
    compress: str


def encode(tensor: Tensor, values: str, compress: str) -> tuple[Coding, dict[str, Tensor]]:
    """Pack a tensor; return how, and its parts by name (``bitmap``, ``values``, ``scales``), uint8 and 1-D.

    ``bf16``, ``fp16`` and ``fp32`` store the entries exactly where the tensor is of that dtype; otherwise they are
    rounded to it. An entry is left out if all its bits are zero: -0.0 is stored.

    Raises:
        MultiflowError: an entry is not finite, or not after rounding.
    """
    if values not in VALUES:
        raise unknown("coding of values", values, VALUES)
    flat = tensor.detach().cpu().contiguous().flatten()
    parts: dict[str, np.ndarray] = {}
    if values == "int8":
        rows = flat.float().view(*_rows(tensor.shape))
        scales = (rows.abs().amax(dim=1) if tensor.numel() else rows.new_zeros(len(rows))) / 127
        stored = (rows / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8).flatten()
        kept = _bits(flat) != 0
        parts["scales"] = scales.numpy().astype("<f4").view("u1")
        finite = bool(scales.isfinite().all())
    else:
        stored = flat.to(VALUES[values])
        kept = _bits(stored) != 0
        finite = bool(stored.isfinite().all())
    if not finite:
        raise MultiflowError(f"a tensor of shape {tuple(tensor.shape)} holds entries that are not finite as {values}")
    chosen = _bits(stored)[kept]
    parts["bitmap"] = np.packbits(kept)
    parts["values"] = chosen.view("u1").reshape(-1, stored.element_size()).T.ravel()
    coding = Coding(tuple(tensor.shape), _named(tensor.dtype), values, len(chosen), compress)
    press = _compressor(compress)
    return coding, {name: torch.from_numpy(np.frombuffer(press(part), "u1").copy()) for name, part in parts.items()}


def decode(coding: Coding, parts: Mapping[str, Tensor], native: Kernels | None = None) -> Tensor:
    """Return the tensor that was packed, in its own dtype; entries that were not stored are +0.0.

    Args:
        coding: how it was packed.
        parts: by name.
        native: compiled kernels, which are many times faster; None = numpy.

    Raises:
        MultiflowError: the parts are not what the coding says; sizes are compared before memory is taken.
    """
    size = math.prod(coding.shape)
    width = VALUES[coding.values].itemsize
    sizes = {"bitmap": -(-size // 8), "values": coding.count * width}
    if coding.values == "int8":
        sizes["scales"] = 4 * _rows(coding.shape)[0]
    expand = _expander(coding.compress)
    raw = {name: expand(parts[name].contiguous().numpy(), length) for name, length in sizes.items()}
    by = native.expand if native and sys.byteorder == "little" else expand_bits
    flat = by(raw["bitmap"], size, raw["values"], coding.count, width)
    if flat is None:
        raise MultiflowError(f"a bitmap of {size} entries does not mark the {coding.count} that are stored")
    stored = torch.from_numpy(flat.view(f"<i{width}")).view(VALUES[coding.values])
    if coding.values == "int8":
        scales = torch.from_numpy(raw["scales"].view("<f4").copy())
        stored = (stored.float().view(*_rows(coding.shape)) * scales[:, None]).flatten()
    return stored.to(getattr(torch, coding.dtype)).view(coding.shape)


def _is_sparse(tensor: Tensor, least: float) -> bool:
    """Whether it is of a type that can be packed, which those of 8 bits are not, and has enough zeros."""
    if tensor.dtype not in (torch.float64, *STANDS_FOR):
        return False
    return tensor.numel() - int(tensor.count_nonzero()) >= least * tensor.numel()


def expand_bits(bitmap: np.ndarray, size: int, values: np.ndarray, stored: int, width: int) -> np.ndarray | None:
    """Do what `Kernels.expand` does."""
    kept = np.flatnonzero(np.unpackbits(bitmap).view(bool))  # of booleans: many times faster than of bytes
    if len(kept) != stored or (len(kept) and kept[-1] >= size):
        return None
    flat = np.zeros(size, UNSIGNED[width])
    flat[kept] = _joined(values.reshape(width, -1))
    return flat


def _joined(planes: np.ndarray) -> np.ndarray:
    """Return numbers from the planes of their bytes, the lowest first."""
    found: np.ndarray = planes[-1].astype(UNSIGNED[len(planes)])
    for plane in planes[-2::-1]:
        found <<= 8
        found |= plane
    return found


def narrow(tensors: Mapping[str, Tensor], rest: str) -> dict[str, Tensor]:
    """Return the tensors that can be stored in a shorter type, in that type.

    Args:
        tensors: floating point numbers or not.
        rest: a name of `REST`. ``same``: the type that the model came in, if that was of two bytes: one that holds at
            least half of all the numbers, and then every tensor that it holds, bit for bit. A named one: rounded to
            it, but for a tensor with a number that it cannot hold, such as 1e6 in fp16.
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype in (torch.float64, *STANDS_FOR)}
    size = sum(tensor.numel() for tensor in floats.values())
    for kind in (torch.float16, torch.bfloat16, torch.float32) if rest == SAME else (VALUES[rest],):
        found = {}
        for name, tensor in floats.items():
            if kind.itemsize < tensor.itemsize:
                short = tensor.to(kind)
                exact = torch.equal(_words(short.to(tensor.dtype)), _words(tensor))
                if exact or (rest != SAME and torch.equal(short.isfinite(), tensor.isfinite())):
                    found[name] = short
        if rest != SAME or 2 * sum(short.numel() for short in found.values()) >= size:
            return found
    return {}


def write_packed(
    path: Path,
    tensors: Mapping[str, Tensor],
    values: str,
    compress: str,
    least: float = 0.2,
    rest: str = SAME,
    beside: Iterable[Path] = (),
) -> Path:
    """Write tensors to a packed file, whole or not at all; return its path.

    Args:
        path: of the file.
        tensors: by name.
        values: how the entries of packed tensors are stored, a name of `VALUES`.
        compress: ``none``, ``zlib`` or ``zstd``.
        least: share of zeros from which a tensor of floating point numbers with two or more dimensions is packed.
        rest: what the others are stored in, a name of `REST`; ``same`` = so that they come back bit for bit.
        beside: files of the same folder without which the tensors compute something else, such as the config: the
            packed file vouches for them.
    """
    stored: dict[str, Tensor] = {}
    packed: dict[str, Tensor] = {}
    codings: dict[str, Coding] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not tensor.numel() or not _is_sparse(tensor, least):
            stored[name] = tensor.detach().cpu().contiguous()
            continue
        try:
            codings[name], parts = encode(tensor, values, compress)
        except MultiflowError as error:
            raise MultiflowError(
                f"'{name}' cannot be packed: {error}; choose other values, or mend the weights"
            ) from error
        packed.update({f"{name}.{part}": bits for part, bits in parts.items()})
    short = narrow(stored, rest)
    header = {KEY: FORMAT, "codings": {name: asdict(coding) for name, coding in codings.items()}}
    header |= {NARROWED: {name: _named(stored[name].dtype) for name in short}} if short else {}
    header |= {BESIDE: described} if (described := {file.name: describe_file(file) for file in beside}) else {}
    whole = {name: tensor.clone() for name, tensor in stored.items() if name not in short}
    return write_tensors(path, {**whole, **short, **packed}, header)


def read_packed(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a packed file.

    Raises:
        MultiflowError: it is no packed file, of a newer format, cut short or altered, or a file that it vouches for is.
    """
    stored, header = read_tensors(path, "packed weights", AGAIN)
    check_beside(path, header)
    codings = _codings(path, header)
    if twice := next((name for name in codings if name in stored), None):
        raise MultiflowError(f"packed file '{path}' holds '{twice}' both packed and dense; {AGAIN}")
    for name, dtype in _narrowed(path, header, stored).items():
        stored[name] = stored[name].to(dtype)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, coding in codings.items():
        names = ("bitmap", "values", *(("scales",) if coding.values == "int8" else ()))
        parts[name] = {part: stored.pop(whole) for part in names if (whole := f"{name}.{part}") in stored}
    native = _native(sum(math.prod(coding.shape) for coding in codings.values()))

    def decoded(name: str) -> Tensor:
        try:
            return decode(codings[name], parts.pop(name), native)
        except (KeyError, ValueError, RuntimeError, zlib.error, MultiflowError) as error:
            raise MultiflowError(f"'{name}' of packed file '{path}' is damaged ({error}); export it again") from error

    return {**stored, **dict(zip(codings, in_parallel(decoded, codings), strict=True))}


def _native(size: int) -> Kernels | None:
    """Return compiled kernels if there are some, and so many entries are worth looking for them."""
    if size < WORTH:
        return None
    try:
        return compiled()
    except NoKernelsError:
        return None


def check_beside(path: Path, header: Mapping[str, Any]) -> None:
    """Refuse files beside a packed one that are not those it was written with; older versions vouch for none."""
    said = header.get(BESIDE, {})
    names = said if isinstance(said, dict) else {"/": None}
    if not all(isinstance(described, str) and Path(name).name == name for name, described in names.items()):
        raise MultiflowError(f"packed file '{path}' is damaged (it vouches for {said!r:.80}); export it again")
    for name, described in said.items():
        if not is_described(path.parent / name, described):
            raise MultiflowError(
                f"'{path.parent / name}' is not the file that '{path.name}' was written with; export it again"
            )


class PackedPart(NamedTuple):
    """What one kind of part takes in a packed file.

    Args:
        part: ``bitmap``, ``values``, ``scales``, ``dense`` (tensors that are not packed) or ``header``.
        tensors: how many tensors have it.
        size: bytes in the file.
        dense: bytes that these tensors take unpacked, in the dtype that they are read back as; 0 for the header.
        types: dtype in which tensors that are not packed are stored -> bytes.
    """

    part: str
    tensors: int
    size: int
    dense: int
    types: Mapping[str, int]


def packed_parts(path: Path) -> list[PackedPart]:
    """Return the size of a packed file by part; their sum is the file.

    Raises:
        MultiflowError: it is no packed file, of a newer format, cut short or altered.
    """
    stored, header = read_tensors(path, "packed weights", AGAIN)
    codings = _codings(path, header)
    narrowed, types = _narrowed(path, header, stored), dict[str, int]()
    found: dict[str, list[int]] = {part: [0, 0, 0] for part in ("bitmap", "values", "scales", "dense")}
    for name, tensor in stored.items():
        of, _, part = name.rpartition(".")
        coding = codings.get(of) if part in found else None
        size = tensor.numel() * tensor.element_size()
        if coding:
            itemsize: int = getattr(torch, coding.dtype).itemsize
            unpacked = math.prod(coding.shape) * itemsize if part == "values" else 0
        else:
            unpacked = tensor.numel() * narrowed.get(name, tensor.dtype).itemsize
            types[_named(tensor.dtype)] = types.get(_named(tensor.dtype), 0) + size
        for at, more in enumerate((1, size, unpacked)):
            found[part if coding else "dense"][at] += more
    listed = [
        PackedPart(part, count, size, unpacked, types if part == "dense" else {})
        for part, (count, size, unpacked) in found.items()
        if count
    ]
    return [*listed, PackedPart("header", 0, path.stat().st_size - sum(part.size for part in listed), 0, {})]


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _narrowed(path: Path, header: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Return name -> dtype of the tensors that were stored in a shorter one."""
    listed = header.get(NARROWED, {})
    found: dict[str, torch.dtype] = {}
    for name, said in listed.items() if isinstance(listed, dict) else [("narrowed", listed)]:
        wide = {_named(kind): kind for kind in (torch.float32, torch.float64)}.get(str(said))
        short = stored[name].dtype if name in stored else None
        if wide is None or short not in STANDS_FOR or short.itemsize >= wide.itemsize:
            raise MultiflowError(f"the header of packed file '{path}' is damaged at '{name}'; {AGAIN}")
        found[name] = wide
    return found


def _codings(path: Path, header: Mapping[str, Any]) -> dict[str, Coding]:
    if KEY not in header:
        raise MultiflowError(f"'{path}' is a safetensors file that is not packed; expected one of 'multiflow export'")
    if type(header[KEY]) is not int or header[KEY] != FORMAT:
        raise MultiflowError(
            f"packed file '{path}' has format {header[KEY]!r}, this version reads format {FORMAT}; update multiflow"
        )
    if not isinstance(listed := header.get("codings"), dict):
        raise MultiflowError(f"the header of packed file '{path}' is damaged; {AGAIN}")
    codings, claimed, size = {}, 0, path.stat().st_size
    for name, fields in listed.items():
        try:
            coding = Coding(**{**fields, "shape": tuple(fields["shape"])})
            dtype = getattr(torch, coding.dtype, None)
            whole = all(type(number) is int and number >= 0 for number in (*coding.shape, coding.count))
            fine = whole and coding.values in VALUES and dtype in (torch.float64, *STANDS_FOR)
            fine = fine and coding.count <= math.prod(coding.shape) and coding.compress in ("none", "zlib", "zstd")
        except (TypeError, KeyError) as error:
            raise MultiflowError(f"the header of packed file '{path}' is damaged at '{name}' ({error})") from error
        if not fine:
            raise MultiflowError(f"the header of packed file '{path}' is damaged at '{name}'; {AGAIN}")
        codings[name] = coding
        claimed += math.prod(coding.shape) * dtype.itemsize  # type: ignore[union-attr]
        if claimed > max(FEW, MOST_TIMES * size):
            raise MultiflowError(
                f"packed file '{path}' of {size} bytes claims weights of {claimed} up to '{name}', more than zeros "
                f"can be; {AGAIN}"
            )
    return codings


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _words(tensor: Tensor) -> Tensor:
    """Return the bits of the entries as whole numbers of their size: what is equal here is equal bit for bit."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def _bits(tensor: Tensor) -> np.ndarray:
    """Return the entries as unsigned integers of their size (float64 has none here: it is rounded before)."""
    if tensor.dtype == torch.float64:
        return (tensor.numpy().view("<u8") != 0).astype("u1")
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.view(kind).numpy().view(UNSIGNED[tensor.element_size()])


def _compressor(name: str) -> Callable[[np.ndarray], bytes]:
    if name == "none":
        return lambda part: part.tobytes()
    if name == "zlib":
        return lambda part: zlib.compress(part.tobytes(), LEVEL)
    if name == "zstd":
        return lambda part: _zstd().ZstdCompressor(level=3).compress(part.tobytes())
    raise unknown("compression", name, ("none", "zlib", "zstd"))


def _expander(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
    def expand(data: np.ndarray, length: int) -> np.ndarray:
        raw: Any
        if name == "none":
            raw = data
        elif name == "zlib":
            raw = zlib.decompressobj().decompress(data.data, length + 1)  # never more memory than the tensor needs
        else:
            zstandard = _zstd()
            try:
                raw = zstandard.ZstdDecompressor().stream_reader(data).read(length + 1)
            except zstandard.ZstdError as error:
                raise MultiflowError(str(error)) from error
        if len(raw) != length:
            raise MultiflowError(f"a part holds {len(raw)} bytes or more where its tensor has {length}")
        return np.frombuffer(raw, "u1")

    if name not in ("none", "zlib", "zstd"):
        raise unknown("compression", name, ("none", "zlib", "zstd"))
    return expand


def _zstd() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MultiflowError(
            "compression 'zstd' needs the package zstandard, which is not installed; pip install zstandard, or use zlib"
        ) from error
    return zstandard
