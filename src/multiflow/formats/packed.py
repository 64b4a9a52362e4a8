"""Packed folders: a Hugging Face folder whose weights are one packed file, a third of the size or less.

Everything beside the weights stays as it was. ``mf.load_model`` opens such a folder like any other; `unpack` makes an
ordinary one of it.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from multiflow.base.adapter import Adapter
from multiflow.base.artifacts import read_foreign
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.files import copy_files, inner_files
from multiflow.base.guards import check_module, exclusively
from multiflow.base.packed import FILE, REST, SAME, VALUES, read_packed, write_packed
from multiflow.base.runs import whole_folder
from multiflow.base.structure import STRUCTURE_FILE, write_structure
from multiflow.families.family import check_fit
from multiflow.formats.coreml import write_coreml
from multiflow.formats.onnx import write_onnx
from multiflow.formats.open_clip import write_open_clip
from multiflow.formats.smaller import compact as without_dead_units
from multiflow.masks import Masks

FORMATS = ("packed", "folder", "open_clip", "onnx", "coreml")
COMPRESSIONS = ("zlib", "zstd", "none")
DECIDING = ("config.json", "generation_config.json", STRUCTURE_FILE)
"""Files of a packed folder by which its tensors compute what they do."""


@exclusively("export")
def export(
    model: Any,
    masks: Masks | None,
    path: str | Path,
    format: str = "packed",
    values: str = "bf16",
    compress: str = "zlib",
    weights: Mapping[str, Tensor] | None = None,
    beside: Iterable[Path] = (),
    *,
    compact: bool = False,
    adapter: Adapter | None = None,
    rest: str = SAME,
) -> Path:
    """Write a sparse model as a folder in which zeros cost one bit, and less where it is compressed; return the folder.

    Args:
        model: a model of transformers, or of ours; it is not changed, whether the masks are applied already or not.
        masks: of this model; None = it is written as it is.
        path: folder to write, new or empty.
        format: ``packed``, ``folder`` for an ordinary one with zeros, ``open_clip`` for a CLIP in open_clip's form,
            ``onnx`` (needs onnx, onnxscript and onnxruntime), a file whose zeros are values like any other, or
            ``coreml`` (needs coremltools), a package for Apple's devices with a bit for each weight and those kept.
        values: how kept weights are stored: ``bf16``, ``fp16`` and ``fp32`` exactly where the model is in that dtype
            and rounded to it otherwise; ``int8`` with one scale a row. ``onnx`` is in fp32, or with ``int8`` quantised
            by onnxruntime; ``coreml`` in fp32 or ``fp16``.
        compress: ``zlib``, ``zstd`` (needs the package zstandard) or ``none``.
        weights: what a method changed, ``result.weights[sparsity]``: layer or parameter -> values; None = the model's
            own.
        beside: files to copy, such as those of the tokenizer.
        compact: whether the neurons and heads that the masks have killed are removed before, see `mf.compact`.
        adapter: for that, of a model that the library does not know.
        rest: what everything that is not pruned (embeddings, norms, biases) is stored in, in a packed folder: ``same``
            = so that it comes back bit for bit, in two bytes where that loses nothing, as in a model that came in
            bfloat16 or float16; or ``bf16``, ``fp16``, ``fp32``, rounded to it. It is read back in its own dtype.

    Raises:
        MultiflowError: the masks are those of another model, the model cannot be pruned (one list of guards for all
            doors), or a name is unknown.

    >>> mf.export(model, result.masks[0.75], "small")      # doctest: +SKIP
    >>> mf.load_model("small")                             # doctest: +SKIP
    """
    format = {"openclip": "open_clip"}.get(format, format)
    for kind, given, known in (
        ("format", format, FORMATS),
        ("coding of values", values, VALUES),
        ("type of the rest", rest, REST),
    ):
        if given not in known:
            raise unknown(kind, given, known)
    if compress not in COMPRESSIONS:
        raise unknown("compression", compress, COMPRESSIONS)
    if rest != SAME and format != "packed":
        raise MultiflowError(
            f"{{rest}} '{rest}' is for packed folders, and the format is '{format}'; bring the model into that dtype "
            "before, or leave it out",
            field="rest",
        )
    check_module(model)
    if not hasattr(model, "save_pretrained"):
        raise MultiflowError(f"a {type(model).__name__} has no save_pretrained; export takes models of transformers")
    if masks is None:
        check_fit(model, adapter)
    elif compact:
        masks.find_weights(model)
    else:
        masks.warn_of_misfit(model, weights, stacklevel=4)
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        if compact and masks is not None:
            model = without_dead_units(model, masks, weights, adapter=adapter)
            masks = None
        state = model.state_dict() if masks is None else _sparse_state(model, masks, weights or {})
        if format == "open_clip":
            with whole_folder(path) as out:
                write_open_clip(model, state, out, list(beside))
            return Path(path)
        if format in ("onnx", "coreml"):
            sparse = copy.deepcopy(model)
            sparse.load_state_dict(state)
            with whole_folder(path) as out:
                if format == "onnx":
                    write_onnx(sparse, out, int8=values == "int8")
                else:
                    write_coreml(sparse, out, values)
                model.config.save_pretrained(out)
                copy_files(beside, out)
            return Path(path)
        model.save_pretrained(folder, state_dict=state)
        write_structure(model, folder)
        copy_files(beside, folder)
        if format == "packed":
            return pack_folder(folder, path, values=values, compress=compress, rest=rest)
        with whole_folder(path) as out:
            shutil.copytree(folder, out, dirs_exist_ok=True)
        return Path(path)


def pack_folder(
    source: str | Path, path: str | Path, *, values: str = "bf16", compress: str = "zlib", rest: str = SAME
) -> Path:
    """Write the packed form of an ordinary folder of a sparse model; return its path.

    Tensors in which at least a fifth of the entries is zero are packed, everything else is stored as ``rest`` says.
    """
    source = Path(source)
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise MultiflowError(f"'{source}' holds no *.safetensors; give a folder that save_pretrained or apply wrote")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_foreign(file)
    with whole_folder(path) as out:
        others = (file for file in source.iterdir() if file.is_file() and file not in files)
        copy_files([*(of for of in others if not of.name.endswith(".index.json")), *inner_files(source)], out)
        beside = [place for name in DECIDING if (place := out / name).is_file()]
        write_packed(out / FILE, tensors, values, compress, rest=rest, beside=beside)
    return Path(path)


def unpack(path: str | Path, out: str | Path) -> Path:
    """Write the ordinary Hugging Face folder of a packed one; return its path.

    Raises:
        MultiflowError: there is no packed file, it is of a newer format, cut short or altered.
    """
    source = Path(path)
    if not (source / FILE).is_file():
        raise MultiflowError(f"'{source}' holds no {FILE}; give a folder that mf.export or 'multiflow export' wrote")
    tensors = read_packed(source / FILE)  # all of it is checked before anything is written
    with whole_folder(out) as folder:
        beside = (file for file in source.iterdir() if file.is_file() and file.name != FILE)
        copy_files([*beside, *inner_files(source)], folder)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Path(out)


def _sparse_state(model: Any, masks: Masks, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = masks.find_weights(model)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    copies: dict[str, Tensor] = {}  # of parameters that hold several weights, one for all names of each
    for layer in masks.layout.layers:
        own = found[layer.name][0].detach()
        new = weights.get(layer.name, own).to(own)
        sparse = torch.where(masks[layer.name].to(own.device), new, new.new_zeros(()))
        names = [layer.parameter(path) for path in layer.paths]
        if layer.part:
            copy = next((copies[name] for name in names if name in copies), None)
            copy = state[names[0]].clone() if copy is None else copy
            layer.view(copy).copy_(sparse)
            copies |= dict.fromkeys(names, copy)
        state.update(dict.fromkeys(names, copies[names[0]] if layer.part else sparse))
    others = masks.find_others(model, weights)
    known = {id(parameter): name for name, parameter in others.items()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in known and name in state:
            state[name] = weights[known[id(parameter)]].to(parameter.detach())
    return state
