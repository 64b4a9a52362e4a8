"""How a family's original release names and sizes its weights, and how such a file becomes a model.

A family is one `Original` record in a file of its own and one row in each table below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = {
    "xvlm": "multiflow.families.xvlm.original:XVLM",
    "dino": "multiflow.families.vit.original:VIT",
    "blip": "multiflow.families.blip.original:BLIP",
}
"""Name in ``load_model(family=...)`` -> where its record is."""

MODEL_TYPES = {
    "xvlm": "multiflow.families.xvlm.original:XVLM",
    "vit": "multiflow.families.vit.original:VIT",
    "dinov2": "multiflow.families.vit.original:DINOV2",
    "blip-pretraining": "multiflow.families.blip.original:BLIP",
    "blip-retrieval": "multiflow.families.blip.original:TRANSFORMERS_BLIP",
    "blip-captioning": "multiflow.families.blip.original:TRANSFORMERS_BLIP",
    "blip-vqa": "multiflow.families.blip.original:TRANSFORMERS_BLIP",
    "blip": "multiflow.families.blip.original:TRANSFORMERS_BLIP",
}
"""``config.model_type`` -> where the record of its original names is."""

NAMED = 3  # names in a message, before it says how many more there are


@dataclass(frozen=True)
class Original:
    """The original release of a family.

    Args:
        layers: regex of the module paths of the prunable linear layers.
        key: parameter name, in the file or in the model -> its name in the release; names that the release stores
            several times for one tensor map to one of them.
        build: sizes and the tensors of the file -> a model, its weights not yet filled in; None where files of the
            release are not read.
        absent: original name of a tensor that the file lacks, the model's own (for its shape), and the tensors of the
            file by original name -> what it is then, a tensor of its own; None where the file must have it.
        ignored: regex of names in the file that the model has no use for.
        presets: named sizes.
    """

    layers: str
    key: Callable[[str], str]
    build: Callable[[Mapping[str, Any], Mapping[str, Tensor]], PreTrainedModel] | None = None
    absent: Callable[[str, Tensor, Mapping[str, Tensor]], Tensor | None] = lambda name, like, given: None
    ignored: str = r"(?!)"
    presets: Mapping[str, Mapping[str, Any]] | None = None


def find(kind: str, name: str, table: Mapping[str, str]) -> Original:
    """Import the record of a family; an unknown name is an error that lists the known ones."""
    if name not in table:
        raise unknown(kind, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def original_names(model: nn.Module) -> dict[str, str]:
    """Map each prunable layer of a known family to its parameter name in the original release.

    Args:
        model: a model whose ``config.model_type`` is known.

    Returns:
        Module path -> release name with its ``.weight``, in module order.

    Raises:
        MultiflowError: the model belongs to no known family.

    >>> original_names(load_model("xvlm.pth", "xvlm"))["vision_encoder.encoder.layers.0.mlp.fc1"]  # doctest: +SKIP
    'vision_encoder.encoder.layers.0.mlp.fc1.weight'
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__
    original = find("model type", model_type, MODEL_TYPES)
    pattern = re.compile(original.layers)
    return {
        name: original.key(f"{name}.weight")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and pattern.search(name)
    }


def fill(model: PreTrainedModel, state: Mapping[str, Tensor], original: Original, path: str) -> None:
    """Put the tensors of an original file into a model, whatever each of them calls a parameter.

    Args:
        model: as built by ``original.build``, usually on the meta device; afterwards in float32 on the CPU.
        state: name in the file -> tensor.
        original: the family's record.
        path: of the file, for the messages.

    Raises:
        MultiflowError: shapes that do not fit, or names that are missing, unexpected or contradict each other.
    """
    given = _by_original_name(state, original, path)
    wanted = {key: original.key(key) for key in model.state_dict()}
    tensors = {name: tensor for name, (_, tensor) in given.items()}
    for key, value in model.state_dict().items():
        if wanted[key] not in given and (tensor := original.absent(wanted[key], value, tensors)) is not None:
            given[wanted[key]] = key, tensor
    hint = "pass config= with the sizes of this checkpoint"
    for key, value in model.state_dict().items():
        name, tensor = given.get(wanted[key], (key, value))
        if tensor.shape != value.shape:
            raise MultiflowError(
                f"'{path}': '{name}' has shape {tuple(tensor.shape)} in the file and {tuple(value.shape)} "
                f"in the model; {hint}"
            )
    missing = list(dict.fromkeys(name for name in wanted.values() if name not in given))
    unexpected = [name for key, (name, _) in given.items() if key not in wanted.values()]
    if missing or unexpected:
        wrong = [f"lacks {_some(missing)}"] if missing else []
        wrong += [f"holds {_some(unexpected)}, which the model does not have"] if unexpected else []
        raise MultiflowError(f"'{path}' {', and '.join(wrong)}; {hint}, and the family it belongs to")

    buffers = {wanted[key]: buffer.dtype for key, buffer in model.named_buffers() if key in wanted}
    filled = {
        name: tensor.to(buffers[name]) if name in buffers else nn.Parameter(tensor.float())
        for name, (_, tensor) in given.items()
    }
    model.load_state_dict({key: filled[name] for key, name in wanted.items()}, assign=True)


def _by_original_name(state: Mapping[str, Tensor], original: Original, path: str) -> dict[str, tuple[str, Tensor]]:
    """Original name -> name in the file and tensor; several names of one tensor must agree."""
    given: dict[str, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if re.search(original.ignored, name):
            continue
        first, value = given.setdefault(original.key(name), (name, tensor))
        if not torch.equal(value, tensor):
            raise MultiflowError(f"'{path}': '{first}' and '{name}' are one tensor in this family but differ here")
    return given


def _some(names: list[str]) -> str:
    first = ", ".join(f"'{name}'" for name in names[:NAMED])
    return first + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
