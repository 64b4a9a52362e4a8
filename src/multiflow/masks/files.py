"""Mask files: our own format, and that of the original release.

Ours is a safetensors file with one bit a weight: each layer is one uint8 tensor of packed bits under its name. The
header holds the format version, the layers (name, shape, group, stream, aliases), the hash of each weight, the
settings, the layers' names in the original release where they are known, and a checksum of all of these and the bits.

The other is a torch file, readable without this library: ``PARAMETER_pruning_mask`` -> tensor ``(out, in)`` of 0 and 1,
1 = kept, where PARAMETER is the name in the original release (``....weight``). Masks of biases are passed over.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multiflow.base.artifacts import read_tensors, write_tensors
from multiflow.base.errors import MultiflowError
from multiflow.base.files import beside, is_regular, write_atomically
from multiflow.base.torch_files import read_torch
from multiflow.base.types import Layer, Layout, WeightPart, short
from multiflow.masks.select import pack

FORMAT = 1
MASK_NAME = re.compile(r"mask-(\d+(?:\.\d+)?(?:e-?\d+)?)\.safetensors")
SUFFIX = "_pruning_mask"
HEAD = 1 << 16
"""Bytes in which the first name of a torch file stands: both of its forms begin with the names."""
SHARE = re.compile(
    r"(?<!\d)(?<!\d\.)(\d\d(?:\.\d+)?) ?(?:%|pct|percent)"
    r"|(?<![a-z])(?:sparsity|sparse|pruned|s|p)[-_=]?(\d\d)(?![\d.]\d)"
    r"|(?<![\d.])(0?\.\d+)(?! ?%|\d|pct|percent)",
    re.IGNORECASE,
)
"""What says in the name of a file how much its masks drop."""
AGAIN = "make the masks again"
NEAR = 0.02
"""How far a share of zeros may be from the one that the name of a file gives."""


class Stored(NamedTuple):
    """What a mask file holds: the fields of `Masks`."""

    layout: Layout
    packed: dict[str, np.ndarray]
    weights: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {}
    names: Mapping[str, str] = {}


LOOKED_AT_SETTINGS: dict[str, Callable[[Any], bool]] = {
    "sparsity": lambda value: isinstance(value, int | float) and type(value) is not bool and 0 <= value <= 1,
    "method": lambda value: value is None or isinstance(value, str),
    "changes_weights": lambda value: type(value) is bool,
    "weights_checksum": lambda value: isinstance(value, str),
    "recovered": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
}
"""Settings of masks that are looked at -> whether a value can be one."""


def save(stored: Stored, path: Path) -> Path:
    """Write masks in our own format, whole or not at all."""
    header = {
        "format": FORMAT,
        "layers": [_fields(layer) for layer in stored.layout.layers],
        "weights": dict(stored.weights),
        "settings": dict(stored.settings),
        "names": dict(stored.names),
    }
    bits = {name: torch.from_numpy(stored.packed[name]) for name in stored.layout}
    return write_tensors(path, bits, header, whole=list(bits))


def load(path: Path) -> Stored:
    """Read masks of our own format, checking every size and the checksum.

    Raises:
        MultiflowError: no such file, a damaged or an altered one, or one of another format.
    """
    if not is_regular(path):
        raise MultiflowError(
            f"no mask file at '{path}'; expected a file that masks.save wrote, or one of the original release"
            f"{beside(path)}"
        )

    def layers(header: Mapping[str, Any]) -> list[str]:
        if not header:
            raise MultiflowError(f"'{path}' is a safetensors file without masks; expected one that masks.save wrote")
        if header["format"] != FORMAT:
            raise MultiflowError(
                f"mask file '{path}' has format {header['format']}, this version reads format {FORMAT}; "
                "update multiflow"
            )
        return [fields["name"] for fields in header["layers"]]

    tensors, header = read_tensors(path, "masks", AGAIN, whole=layers)
    try:
        layout = Layout(tuple(_layer(fields) for fields in header["layers"]))
        rest = [dict(header.get(name, {})) for name in ("weights", "settings", "names")]
        _check_settings(rest[1])
        for name, texts in (("weights", rest[0]), ("names", rest[2])):
            if not all(isinstance(text, str) for text in texts.values()):
                raise ValueError(f"{name} that are no texts")
    except (KeyError, TypeError, ValueError) as error:
        raise MultiflowError(f"the header of mask file '{path}' is damaged ({error!r}); {AGAIN}") from error
    packed = {name: tensors[name].numpy() for name in layout}
    for name, layer in layout.items():
        if packed[name].dtype != np.uint8 or packed[name].shape != (-(-layer.size // 8),):
            raise MultiflowError(
                f"mask file '{path}' was altered: the bits of layer '{name}' are not those of {layer.shape}; {AGAIN}"
            )
    return Stored(layout, packed, *rest)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that this library looks at where they are of another kind; others may say what they want."""
    for name, fits in LOOKED_AT_SETTINGS.items():
        if name in settings and not fits(settings[name]):
            raise ValueError(f"{name} {settings[name]!r:.80}")
    if settings.get("changes_weights") and "sparsity" not in settings:
        raise ValueError("changed weights at no sparsity")


def _fields(layer: Layer) -> dict[str, Any]:
    """A layer as JSON; its part only where it has one, so that older versions read all other masks."""
    return {name: value for name, value in asdict(layer).items() if name != "part" or value is not None}


def _part(fields: Mapping[str, Any]) -> WeightPart:
    rows = fields.get("rows")
    part = WeightPart(**{**fields, "rows": None if rows is None else tuple(rows)})
    numbers = [*(part.rows or ()), *([] if part.index is None else [part.index])]
    if not isinstance(part.parameter, str) or not isinstance(part.tail, str) or type(part.transposed) is not bool:
        raise ValueError(f"a layer that lies in {dict(fields)}")
    if not all(type(number) is int and number >= 0 for number in numbers) or (part.rows and len(part.rows) != 2):
        raise ValueError(f"a layer that lies in {dict(fields)}")
    return part


def _layer(fields: Mapping[str, Any]) -> Layer:
    part = None if fields.get("part") is None else _part(fields["part"])
    layer = Layer(**{**fields, "shape": tuple(fields["shape"]), "aliases": tuple(fields["aliases"]), "part": part})
    texts = (layer.name, layer.group, *layer.aliases, *([] if layer.stream is None else [layer.stream]))
    if len(layer.shape) != 2 or not all(type(size) is int and size >= 0 for size in layer.shape):
        raise ValueError(f"a layer of shape {fields['shape']}")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"a layer with names {texts}")
    return layer


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as ``torch.save`` begins one: as a zip archive, or in old versions as a pickle."""
    head = _head(path, 9)
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[8:9] != b"{")  # { begins a safetensors header


def is_original(path: Path) -> bool:
    """Whether a file is a torch file with masks; a model's checkpoint may be a torch file as well."""
    return is_torch_file(path) and SUFFIX.encode() in _head(path, HEAD)


def save_original(masks: Mapping[str, Tensor], path: Path) -> Path:
    """Write bool masks, one byte a weight, under the original names of their parameters."""
    data = io.BytesIO()
    torch.save({f"{name}{SUFFIX}": mask for name, mask in masks.items()}, data)
    return write_atomically(path, data.getvalue())


def load_original(path: Path) -> Stored:
    """Read masks under their original names; the group of a layer is the first part of its name.

    Raises:
        MultiflowError: a file that is truncated or altered, wants to run code, or holds anything but masks of 0 and 1.
    """
    content = read_torch(path, called=f"mask file '{path}'", wanted="tensors", kind="torch", mmap=True)
    if not isinstance(content, Mapping):
        raise MultiflowError(f"'{path}' holds a {type(content).__name__}; expected names -> masks")
    layers: list[Layer] = []
    packed: dict[str, np.ndarray] = {}
    for key, value in content.items():
        if not str(key).endswith((".weight" + SUFFIX, "bias" + SUFFIX)):
            raise MultiflowError(f"'{path}' is no mask file: it holds '{key}'; names of masks end in '{SUFFIX}'")
        if key.endswith("bias" + SUFFIX):
            continue
        name = key.removesuffix(".weight" + SUFFIX)
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
            raise MultiflowError(f"'{path}': the mask '{key}' is no dense tensor; expected 0 or 1 for each weight")
        if value.dim() != 2 or not value.numel():
            raise MultiflowError(f"'{path}': the mask '{key}' has shape {tuple(value.shape)}; expected (out, in)")
        kept = value == 1
        if not (kept | (value == 0)).all():
            raise MultiflowError(f"'{path}': the mask '{key}' holds other values than 0 and 1; expected 1 = kept")
        layers.append(Layer(name, (value.shape[0], value.shape[1]), name.partition(".")[0]))
        packed[name] = pack(kept)
    if not layers:
        raise MultiflowError(f"'{path}' holds no masks; expected names that end in '.weight{SUFFIX}'")
    return Stored(Layout(tuple(layers)), packed, names={name: f"{name}.weight" for name in packed})


def check_share(path: Path, dropped: float, said: float | None, *, by_name: bool) -> None:
    """Compare the share of the weights that masks drop with what is said of them; some tools write True for pruned.

    Args:
        path: of the masks, whose name or folder may tell a share.
        dropped: the share.
        said: what the user says it is; None = nothing.
        by_name: warn where the path says the opposite.

    Raises:
        MultiflowError: they drop another share than the user says.
    """
    turn = "read them with mf.Masks.load(path, inverted=True), and save them anew"
    if said is not None:
        if abs(dropped - said) < NEAR:
            return
        fix = "give the share that they have, or another file"
        if abs(1 - dropped - said) < NEAR:
            fix = f"they are inverted (True = pruned): {turn}"
        raise MultiflowError(
            f"'{path}' drops {100 * dropped:.4g} % of the weights, not {100 * said:.4g} % as {{sparsity={said:g}}} "
            f"says; {fix}",
            field="sparsity",
        )
    for text, share in _shares_in("/".join(path.parts[-2:])) if by_name else ():
        if abs(1 - dropped - share) < NEAR < abs(dropped - share):
            warnings.warn(
                f"the name of '{path}' says {text}, and its masks keep {1 - dropped:.2f} of the weights: if that is to "
                f"be the share of zeros, they are inverted (True = pruned); then {turn}",
                stacklevel=3,
            )
            return


def _shares_in(name: str) -> Iterator[tuple[str, float]]:
    """Find shares of zeros in a name: 0.75, 75%, 75pct, sparsity75, s_75.

    >>> [share for _, share in _shares_in("xvlm-75%/mask_s63_0.9.pth")]
    [0.75, 0.63, 0.9]
    """
    for found in SHARE.finditer(name):
        percent, word, share = found.groups()
        yield found[0], float(share) if share else float(percent or word) / 100


def _head(path: Path, size: int) -> bytes:
    try:
        if not is_regular(path):  # a pipe would be waited for
            return b""
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def mask_file(sparsity: float) -> str:
    """Name the file of the masks at a sparsity.

    >>> mask_file(0.63)
    'mask-0.63.safetensors'
    """
    return f"mask-{short(sparsity)}.safetensors"


def mask_files(folder: Path) -> dict[str, Path]:
    """List the mask files of a folder: sparsity, as the name of the file writes it -> path, the least first."""
    named = [(found[1], path) for path in folder.iterdir() if (found := MASK_NAME.fullmatch(path.name))]
    return dict(sorted(named, key=lambda pair: float(pair[0])))
