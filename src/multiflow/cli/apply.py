"""``multiflow apply``: a pruned model as an ordinary Hugging Face folder, its dropped weights stored as zeros."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Positional, arg

from multiflow.base.artifacts import check_regular
from multiflow.base.errors import MultiflowError
from multiflow.base.registry import import_modules
from multiflow.base.runs import whole_folder
from multiflow.base.structure import STRUCTURE_FILE, write_structure
from multiflow.cli.console import percent, show
from multiflow.cli.masks import put_on
from multiflow.cli.settings import Config, Device, Dtype, Family, Modules
from multiflow.families.opening import (
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    find_device,
    find_dtype,
    find_model,
    load_model,
    model_files,
    open_model,
    open_streamed,
    quiet_transformers,
)
from multiflow.masks import Masks, is_original
from multiflow.pruning.result import changed_weights, weights_file


@dataclass(frozen=True)
class ApplySettings:
    """Which masks to apply to which model.

    Args:
        model: the model that the masks were made for: a folder, Hugging Face id, checkpoint file or bundled model
        mask_file: a file that 'multiflow prune' wrote, or one of the original release
        out: folder to write, new or empty
        stream: one weight at a time in memory; shards stay as they are
    """

    model: Positional[str]
    mask_file: Positional[str]
    out: Annotated[str, arg(metavar="DIR")]
    sparsity: Annotated[
        float | None,
        arg(metavar="S", help="share that the masks are said to drop: any other is refused", help_behavior_hint=""),
    ] = None
    stream: Annotated[bool, arg(help_behavior_hint="")] = False
    family: Family = None
    config: Config = None
    modules: Modules = ()
    device: Device = "cpu"
    dtype: Dtype = "auto"


def apply(settings: ApplySettings) -> None:
    import_modules(settings.modules)
    find_device(settings.device)
    find_dtype(settings.dtype)
    place = find_model(settings.model)
    masks = Masks.load(settings.mask_file, settings.sparsity)  # before the model is loaded
    if settings.stream:
        show(_described(settings, _apply_streamed(settings, place, masks), masks))
        return
    changed = changed_weights(Path(settings.mask_file), masks)
    with whole_folder(settings.out) as folder:
        model: Any = open_model(place, settings.family, settings.config, settings.device)
        if is_original(Path(settings.mask_file)):
            masks = put_on(model, masks)
        masks.apply_(model, changed)  # to the weights as they are stored: those whose hashes the masks hold
        model.to(find_dtype(settings.dtype) or model.dtype)
        with quiet_transformers():
            model.save_pretrained(folder)
            write_structure(model, folder)
        for path in folder.glob("*.safetensors"):  # safetensors makes its files readable by their owner alone
            shutil.copymode(folder / "config.json", path)
        for path in model_files(place, TOKENIZER_FILES + PROCESSOR_FILES):
            shutil.copyfile(path, folder / path.name)
        check_zeros(folder, model, masks)
    show(_described(settings, model, masks) + ", read back and checked")


def _described(settings: ApplySettings, model: Any, masks: Masks) -> str:
    zeros = sum(map(masks.dropped, masks))
    groups = ", ".join(f"{group} {percent(share)}" for group, share in masks.group_sparsities().items())
    return (
        f"{settings.out}: {type(model).__name__} with {zeros:,} of {masks.layout.size:,} prunable weights zero "
        f"({percent(masks.sparsity)}; {groups})"
    )


def _apply_streamed(settings: ApplySettings, place: str, masks: Masks) -> Any:
    from multiflow.formats.sharded import apply_to_shards
    from multiflow.pruning.stream.run import WeightsOnDisk

    if settings.dtype != "auto" or settings.config is not None:
        raise MultiflowError("--stream copies a folder as it is; leave --dtype and --config out")
    changed = None
    if masks.settings.get("changes_weights"):
        path = Path(settings.mask_file).with_name(weights_file(masks.settings["sparsity"]))
        check_regular(path, "changed weights")
        changed = WeightsOnDisk(path, masks.layout)
    with whole_folder(settings.out) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as anew:
        with quiet_transformers():
            model = open_streamed(place, Path(anew) / "weights", settings.family)
        apply_to_shards(model, masks, changed, folder)
    return model


def check_zeros(folder: Path, model: Any, masks: Masks) -> None:
    """Read a model back from its folder and make sure that it holds the weights of the pruned one, bit for bit."""
    with quiet_transformers():
        told = not (folder / STRUCTURE_FILE).is_file()
        again: Any = type(model).from_pretrained(folder, dtype=model.dtype) if told else load_model(folder)
    written = masks.find_weights(again)
    for name, weights in masks.find_weights(model).items():
        for ours, theirs in zip(weights, written[name], strict=True):
            if not torch.equal(ours.detach().cpu().view(torch.uint8), theirs.detach().view(torch.uint8)):
                raise MultiflowError(
                    f"layer '{name}' of a {type(model).__name__} does not survive save_pretrained and from_pretrained; "
                    "apply the masks in Python with masks.apply_(model)"
                )
            dropped = theirs.detach()[~masks[name]]
            if dropped.count_nonzero() or dropped.signbit().any():
                raise MultiflowError(f"layer '{name}' holds other values than 0.0 where the mask drops weights")
