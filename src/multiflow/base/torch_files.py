"""PyTorch files of others: read without running code, checked against what they claim, their checksums looked at.

torch itself looks neither at the CRC-32 of the entries of its zip archives nor at how much a stride of 0 claims.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from multiflow.base.artifacts import check_regular
from multiflow.base.errors import MultiflowError
from multiflow.base.guards import raise_shortage

FOLDER = 0x10  # attribute of an entry in a zip archive
LONGEST_NAME = 200  # of a global in a pickle
PICKLES = 5  # at the beginning of a torch file of old versions; storages follow
MOST_USES = 8
"""How many times the size of a torch file its tensors may have together: shared weights are stored once."""


def read_torch(path: Path, *, called: str, wanted: str, kind: str = "PyTorch", mmap: bool = False) -> Any:
    """Read a torch file of tensors; one that wants to run code, is damaged, or claims more than it holds is refused.

    Args:
        path: the file.
        called: what errors call it, with its path.
        wanted: what a user who trusts the file may save of it.
        kind: what errors call the format.
        mmap: leave the tensors on the disk until they are looked at, where the format allows it.
    """
    check_regular(path, f"{kind} file")
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        if is_zip:
            _check_zip(path, called)
        else:
            with path.open("rb") as file:
                for _ in range(PICKLES):
                    _check_globals(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the unpickler, about files that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
    except MultiflowError:
        raise
    except Exception as error:  # bytes that were altered make the unpickler stumble over anything
        raise_shortage(error, path.stat().st_size)
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise MultiflowError(
                f"{called} is a pickle that wants to run {code[1]}, and only tensors are read; if you trust the file, "
                f"load it yourself and save its {wanted} alone"
            ) from error
        raise MultiflowError(f"{called} is not a complete {kind} file; copy it again") from error
    _check_sizes(content, path.stat().st_size, called)
    return content


def _check_zip(path: Path, called: str) -> None:
    """Compare sizes and CRC-32 of all entries with what the file holds; torch itself looks at neither."""
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise MultiflowError(
                f"{called} claims to unpack to more than its size, which torch.save never writes; save it anew"
            )
        # torch takes an entry that is marked as a folder for read, and gives whatever was in memory
        bad = next((entry.filename for entry in entries if entry.external_attr & FOLDER), None) or file.testzip()
        if bad:
            raise MultiflowError(f"{called} was altered: the checksum of its entry '{bad}' does not fit; copy it again")
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                with file.open(entry) as pickled:
                    _check_globals(pickled)


def _check_globals(pickled: IO[bytes]) -> None:
    """Read through a pickle without running it: torch takes very long to refuse a global whose name is very long."""
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in ("GLOBAL", "INST") and len(str(argument)) > LONGEST_NAME:
            raise ValueError("a name of thousands of letters")


def _check_sizes(content: Any, size: int, called: str) -> None:
    """Refuse tensors that are larger than their file: a stride of 0 lets few bytes claim any size."""
    seen: set[int] = set()
    stack, total = [content], 0
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            stack += one.values()
        elif isinstance(one, list | tuple | set):
            stack += one
        elif isinstance(one, Tensor) and one.layout == torch.strided and not one.is_meta:
            total += one.numel() * one.element_size()
            if one.numel() * one.element_size() > size or total > MOST_USES * size:
                raise MultiflowError(
                    f"{called} claims a tensor of shape {tuple(one.shape)}, more than its {size:,} bytes can hold; "
                    "save it anew with tensor.contiguous()"
                )
