"""Artifacts: the one way to write and read files that matter, so that no flipped bit and no false size gets through.

Tensors are written as safetensors with a JSON header under ``multiflow`` in the metadata, other results as JSON or as
lines of JSON. All carry a ``checksum``: sha256 of everything else in the header, in which ``tensors`` gives dtype,
shape and CRC-32 of each tensor. Header and JSON are also compared with how they would be written, so that each byte of
a file counts. What says its ``format`` must have a checksum; files of older versions say neither and open all the same.
Lines of which none may be lost say the checksum of the line before them too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.files import exists, is_regular, plain, read_regular, write_atomically
from multiflow.base.guards import raise_shortage
from multiflow.base.parallel import in_parallel

KEY = "multiflow"
"""Of the safetensors metadata, under which the header stands."""
FORMAT = 2
"""Version of headers, JSON files and lines that have a checksum; those before had neither."""
DIGITS = 64
"""Of a checksum."""
AFTER = "after"
"""Key of a line that says the checksum of the line before."""
SIGNS = ("format", "checksum", "tensors")
"""Keys of a header with a checksum: where one of them is left, the others are missing."""
MOST_HEADER, MOST_JSON = 100_000_000, 1 << 26  # bytes
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Of types, in safetensors files."""
DAMAGED = (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
"""What a damaged file is read as."""
PART = 1 << 22  # bytes of a file read at a time


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], whole: Sequence[str] | None = None
) -> Path:
    """Write tensors and a header to a safetensors file, whole or not at all; return the path.

    Args:
        path: of the file.
        tensors: name -> tensor; of a mapping that is no dict, which may read them when they are looked up, one at a
            time is held, and looked up twice.
        header: plain values that JSON can say.
        whole: names of all tensors in the order in which the checksum itself takes in their bytes, as mask files have
            it; by default the header gets a CRC-32 of each instead, several of which are computed at a time.
    """
    if not isinstance(tensors, dict) and whole is None:
        return _write_one_by_one(Path(path), tensors, header)
    there: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        there[name] = here.clone() if place in memory else here  # safetensors wants memory of its own for each
        memory.add(place)
    full = json.loads(json.dumps(dict(header), default=plain))
    if whole is None:
        full["format"] = FORMAT
        full["tensors"] = dict(zip(there, in_parallel(_describe, there.values()), strict=True))
    full["checksum"] = _checksum(full, [there[name] for name in whole or ()])
    return write_atomically(path, lambda place: save_file(there, place, metadata={KEY: json.dumps(full)}))


def _write_one_by_one(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    full = json.loads(json.dumps(dict(header), default=plain))
    full |= {"format": FORMAT, "tensors": {}}
    kinds: dict[str, tuple[str, Sequence[int]]] = {}
    for name, tensor in tensors.items():
        full["tensors"][name] = _describe(tensor.cpu())
        kinds[name] = NAMES[tensor.dtype], tuple(tensor.shape)
    full["checksum"] = _checksum(full)
    return write_lazily(path, kinds, tensors.__getitem__, {KEY: json.dumps(full)})


def write_lazily(
    path: Path,
    kinds: Mapping[str, tuple[str, Sequence[int]]],
    load: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> Path:
    """Write a safetensors file of which one tensor at a time is in memory, whole or not at all; return the path.

    Args:
        path: of the file.
        kinds: name -> type, as safetensors calls it, and shape.
        load: gives a tensor by its name.
        metadata: of the file.
    """
    sizes = {kind: dtype.itemsize for dtype, kind in NAMES.items()}
    entries: dict[str, Any] = {}
    end = 0
    for name, (kind, shape) in kinds.items():
        begin, end = end, end + sizes[kind] * math.prod(shape)
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": dict(metadata), **entries}).encode()
    text += b" " * (-len(text) % 8)

    def write(place: Path) -> None:
        with place.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, (kind, shape) in kinds.items():
                tensor = load(name)
                if NAMES[tensor.dtype] != kind or tuple(tensor.shape) != tuple(shape):
                    raise MultiflowError(
                        f"'{name}' is {NAMES[tensor.dtype]} {tuple(tensor.shape)}; expected {kind} {tuple(shape)}"
                    )
                file.write(_bytes(tensor.cpu()))

    return write_atomically(path, write)


def read_tensors(
    path: str | Path,
    what: str,
    fix: str = "delete it",
    whole: Callable[[Mapping[str, Any]], Sequence[str]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote; the header is empty if the file has none, as changed weights once had.

    Args:
        path: of the file.
        what: what errors call it.
        fix: what they advise.
        whole: gives of the header what was given to `write_tensors`; such a file always has a checksum.

    Raises:
        MultiflowError: no such file, a damaged or an altered one.
    """
    check_regular(path, what)
    text = "{}"
    try:
        _check_claims(Path(path))
        with safe_open(path, "pt") as file:
            if metadata := file.metadata():
                text = metadata[KEY]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError(f"its header is a {type(header).__name__}, not names with values")
        order = whole(header) if whole else ()
    except DAMAGED as error:
        raise_shortage(error)
        raise MultiflowError(f"'{path}' holds no {what}, or is damaged ({_said(error)}); {fix}") from error
    if whole or any(sign in header for sign in SIGNS):
        listed = header.get("tensors", {}) if whole is None else dict.fromkeys(order)
        if not isinstance(listed, dict) or set(listed) != set(tensors) or text != json.dumps(header):
            raise _altered(f"'{path}'", fix)
        if header.get("checksum") != _checksum(header, [tensors[name] for name in order]):
            raise _altered(f"'{path}'", fix)
        if whole is None:
            if list(listed.values()) != list(in_parallel(_describe, (tensors[n] for n in listed))):
                raise _altered(f"'{path}'", fix)
            _check_format(f"'{path}'", header)
    return tensors, header


def read_foreign(path: str | Path, fix: str = "copy it again") -> dict[str, Tensor]:
    """Read the tensors of a safetensors file of others, which has no checksum.

    Raises:
        MultiflowError: it is no regular file, or claims other sizes than it has.
    """
    check_foreign(path, fix)
    with naming_damaged(path, fix):
        return load_file(path)


def check_foreign(path: str | Path, fix: str = "copy it again") -> None:
    """Look at a safetensors file of others before a library maps it.

    Raises:
        MultiflowError: it is no regular file, or claims other sizes than it has.
    """
    check_regular(path, "safetensors file")
    with naming_damaged(path, fix):
        _check_claims(Path(path))


def read_one(path: str | Path, name: str) -> Tensor:
    """Read one tensor of a safetensors file without mapping the file, which may be larger than the memory allowed.

    Raises:
        KeyError: it holds no such tensor.
        MultiflowError: it is gone, damaged, or not as long as its header claims.
    """
    with naming_damaged(path), Path(path).open("rb") as file:
        entries, begin = _read_claims(file)
        entry = entries.get(name)
        if entry is not None:
            first, last = entry["data_offsets"]
            file.seek(begin + first)
            alone = json.dumps({name: {**entry, "data_offsets": [0, last - first]}}).encode()
            return load(len(alone).to_bytes(8, "little") + alone + file.read(last - first))[name]
    raise KeyError(name)


def read_kinds(path: str | Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Return type and shape of each tensor of a safetensors file, as `write_lazily` takes them, and its metadata.

    Its header alone is read.

    Raises:
        MultiflowError: it is gone, damaged, or not as long as its header claims.
    """
    with naming_damaged(path):
        entries = _check_claims(Path(path))
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}, metadata


@contextmanager
def naming_damaged(path: str | Path, fix: str = "copy it again") -> Iterator[None]:
    """Turn what a reader raises of a file of weights that is gone, cut or damaged by now into a sentence."""
    try:
        yield
    except DAMAGED as error:
        raise_shortage(error)
        raise MultiflowError(f"'{path}' is not a complete safetensors file ({_said(error)}); {fix}") from error


def checksum_of(path: str | Path) -> str:
    """Return the checksum in the header of what `write_tensors` wrote, for another file to vouch for it."""
    metadata = _check_claims(Path(path))["__metadata__"]  # safetensors itself would map the file to read its header
    return str(json.loads(metadata[KEY])["checksum"])


def write_facts(path: str | Path, value: Mapping[str, Any]) -> Path:
    """Write plain values as JSON with a checksum, whole or not at all; return the path."""
    return write_atomically(path, _indented(_signed(value)))


def read_facts(path: str | Path, what: str, fix: str) -> dict[str, Any]:
    """Read what `write_facts` wrote, without format and checksum.

    Raises:
        MultiflowError: no such file, a damaged or an altered one, or one that holds no names with values.
    """
    check_regular(path, what)
    try:
        text = read_regular(path, MOST_JSON).decode()
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}, not names with values")
    except (OSError, ValueError, RecursionError) as error:
        raise MultiflowError(f"'{path}' is damaged ({_said(error)}), or no {what}; {fix}") from error
    return _verified(value, text, _indented, f"'{path}'", fix)


def line_of(value: Mapping[str, Any]) -> str:
    """Return plain values as a line of JSON with a checksum."""
    return json.dumps(_signed(value)) + "\n"


def read_line(line: str, called: str, fix: str) -> dict[str, Any]:
    """Read what `line_of` wrote, without format and checksum; lines of older versions have none.

    Args:
        line: the text, with or without its end.
        called: what errors call it.
        fix: what they advise.

    Raises:
        MultiflowError: it is no JSON, was altered, or holds no names with values.
    """
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}, not names with values")
    except (ValueError, RecursionError) as error:
        raise MultiflowError(f"{called} is no JSON ({_said(error)}); {fix}") from error
    return _verified(value, line.removesuffix("\n"), json.dumps, called, fix)


def next_line(value: Mapping[str, Any], before: str = "") -> str:
    """Return plain values as a line that also says the checksum of the line before, for a file that may lose none.

    Args:
        value: what the line says.
        before: the line before, as this function gave it; empty for the first one.
    """
    return line_of({**value, AFTER: _checksum_in(before)})


def read_lines(text: str, called: str, fix: str) -> list[dict[str, Any]]:
    """Read lines that `next_line` wrote, or such without checksums of older versions.

    A last line that a kill has torn is left out; that lines are missing at the end is for another file to say, see
    `describe_file`.

    Args:
        text: all of the file.
        called: what errors call it.
        fix: what they advise.

    Raises:
        MultiflowError: a line was altered, or one is missing before it.
    """
    *lines, rest = text.split("\n")
    if _begins_whole(rest):  # it is not torn: its end alone is another, or missing
        lines.append(rest)
    values = [read_line(line, f"line {number} of {called}", fix) for number, line in enumerate(lines, 1)]
    said = [value.pop(AFTER, None) for value in values]
    if any(after is not None for after in said):
        before = ["", *lines]
        for number, after in enumerate(said):
            if after != _checksum_in(before[number]):
                raise MultiflowError(f"a line is missing before line {number + 1} of {called}; {fix}")
    return values


def _begins_whole(text: str) -> bool:
    try:
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _checksum_in(line: str) -> str:
    return str(json.loads(line).get("checksum")) if line else ""


def _signed(value: Mapping[str, Any]) -> dict[str, Any]:
    full = {**json.loads(json.dumps(dict(value), default=plain)), "format": FORMAT}
    return {**full, "checksum": _checksum(full)}


def _verified(
    value: dict[str, Any], text: str, written: Callable[[dict[str, Any]], str], called: str, fix: str
) -> dict[str, Any]:
    """Return values without format and checksum, if they are as they were signed, or as older versions wrote them."""
    # whatever the key is called by now: values without a checksum hold no such text at the top
    unnamed = any(isinstance(one, str) and len(one) == DIGITS and _is_like_digits(one) for one in value.values())
    if unnamed or any(name.strip().lower() in SIGNS[:2] for name in value):
        if text != written(value) or value.get("checksum") != _checksum(value):
            raise _altered(called, fix)
        _check_format(called, value)
    return {name: one for name, one in value.items() if name not in SIGNS[:2]}


def _is_like_digits(text: str) -> bool:
    """Whether nearly all letters of a text are hexadecimal digits: a damaged checksum, and no path of that length."""
    return sum(letter in "0123456789abcdef" for letter in text) > 0.8 * len(text)


def _check_format(called: str, header: Mapping[str, Any]) -> None:
    if header.get("format", FORMAT) != FORMAT:
        raise MultiflowError(
            f"{called} has format {header['format']}, this version reads up to {FORMAT}; update multiflow"
        )


def describe_file(path: str | Path) -> str:
    """Give size and CRC-32 of a file, for another file of ours to vouch for it."""
    found = 0
    with Path(path).open("rb") as file:
        while part := file.read(PART):
            found = zlib.crc32(part, found)
    return f"{Path(path).stat().st_size} bytes, {found:08x}"


def is_described(path: str | Path, described: str) -> bool:
    """Whether a file is as `describe_file` said; one of another size is not read."""
    check_regular(path, "file")
    return described.startswith(f"{Path(path).stat().st_size} bytes") and described == describe_file(path)


def check_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    like: Mapping[str, tuple[tuple[int, ...], Sequence[torch.dtype]]],
    fix: str,
    *,
    finite: bool = True,
) -> None:
    """Check the names, shapes and types of what a file holds, before anything is done with it.

    Args:
        path: of the file.
        tensors: what it holds.
        like: name -> shape, and the types of which one is expected.
        fix: what errors advise.
        finite: whether NaN and Inf are errors too.
    """
    for name in [*like, *tensors]:
        if name not in tensors:
            raise MultiflowError(f"'{path}' lacks '{name}'{did_you_mean(name, set(tensors) - set(like))}; {fix}")
        if name not in like:
            raise MultiflowError(
                f"'{path}' holds '{name}', which does not belong there{did_you_mean(name, like)}; {fix}"
            )
        (shape, dtypes), tensor = like[name], tensors[name]
        if tuple(tensor.shape) != tuple(shape) or tensor.dtype not in dtypes:
            wanted = f"{' or '.join(_short(dtype) for dtype in dtypes)} {tuple(shape)}"
            raise MultiflowError(
                f"'{name}' in '{path}' is {_short(tensor.dtype)} {tuple(tensor.shape)}; expected {wanted}; {fix}"
            )
        if finite and tensor.is_floating_point() and not tensor.isfinite().all():
            raise MultiflowError(f"'{name}' in '{path}' holds NaN or Inf; {fix}")


def check_regular(path: str | Path, what: str) -> None:
    """Refuse what is no regular file: a missing one, a folder, a pipe that would be waited for."""
    if not is_regular(path):
        there = "it is a folder, pipe or device" if exists(path) else "there is no such file"
        raise MultiflowError(f"'{path}' holds no {what} that can be read ({there}); give the path of a file")


def _check_claims(path: Path) -> dict[str, Any]:
    """Compare what the header of a safetensors file claims with its size, before the file is mapped; return the header.

    Raises:
        ValueError: they differ, or the header is none; or what JSON raises of it.
    """
    with path.open("rb") as file:
        return _read_claims(file)[0]


def _read_claims(file: IO[bytes]) -> tuple[dict[str, Any], int]:
    """Return the header of an open safetensors file, checked as `_check_claims` does, and where the tensors begin."""
    size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, MOST_HEADER):
        raise ValueError(f"its header claims {length} bytes of {size}")
    header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if max(ends, default=0) != size - 8 - length:
        raise ValueError(f"its tensors claim {max(ends, default=0)} bytes of {size - 8 - length}")
    return dict(header), 8 + length


def _checksum(header: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> str:
    """sha256 of a header without its own checksum, and of kind and bytes of tensors."""
    rest = {key: value for key, value in header.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode(), usedforsecurity=False)
    for tensor in tensors:
        digest.update(f"{_short(tensor.dtype)} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _describe(tensor: Tensor) -> str:
    return f"{_short(tensor.dtype)} {list(tensor.shape)} {zlib.crc32(_bytes(tensor)):08x}"


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().flatten()
    array: np.ndarray = flat.view(torch.uint8).numpy()
    return array.data


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _indented(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


def _altered(called: str, fix: str) -> MultiflowError:
    return MultiflowError(f"{called} was altered: its checksum does not fit, or is missing; {fix}")


def _said(error: BaseException) -> str:
    missing = f"no {error} in its header" if isinstance(error, KeyError) else ""
    return missing or " ".join(str(error).split()) or type(error).__name__
