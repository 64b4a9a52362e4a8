"""``multiflow apply``: a pruned model as an ordinary Hugging Face folder, its dropped weights stored as zeros."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections import Counter
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Positional, arg

from multiflow.base.artifacts import check_regular, read_facts, read_kinds
from multiflow.base.errors import MultiflowError
from multiflow.base.files import copy_files
from multiflow.base.packed import FILE as PACKED_FILE
from multiflow.base.registry import import_modules
from multiflow.base.runs import whole_folder
from multiflow.base.structure import STRUCTURE_FILE, write_structure
from multiflow.cli.console import percent, show
from multiflow.cli.masks import fitted
from multiflow.cli.settings import Device, Dtype, MaskSparsity, ModelOptions, Modules, own_first
from multiflow.families.opening import (
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    find_device,
    find_dtype,
    find_model,
    load_model,
    model_files,
    open_streamed,
    quiet_transformers,
)
from multiflow.masks import Masks
from multiflow.masks.cards import model_card
from multiflow.pruning.result import RESULT_FILE, changed_weights, weights_file

CARD = "README.md"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What safetensors calls them -> dtype."""


@own_first
@dataclass(frozen=True)
class ApplySettings(ModelOptions):
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
    sparsity: MaskSparsity = None
    stream: Annotated[bool, arg(help_behavior_hint="")] = False
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
        model = settings.open(place, settings.device)
        masks = fitted(masks, settings.mask_file, model)
        masks.apply_(model, changed)  # to the weights as they are stored: those whose hashes the masks hold
        if (dtype := find_dtype(settings.dtype)) is not None:
            model.to(dtype)
        else:  # every weight as it came, also where they differ, or where the config says another
            as_stored(model, place)
        with quiet_transformers():
            model.save_pretrained(folder, **shard_size(place))
            write_structure(model, folder)
        _write_card(folder, settings, masks)
        for path in folder.glob("*.safetensors"):  # safetensors makes its files readable by their owner alone
            shutil.copymode(folder / "config.json", path)
        copy_files(model_files(place, TOKENIZER_FILES + PROCESSOR_FILES), folder)
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
            model = open_streamed(
                place, Path(anew) / "weights", settings.family, trust_remote_code=settings.trust_remote_code
            )
        apply_to_shards(model, masks, changed, folder)
        _write_card(folder, settings, masks)
    return model


def _write_card(folder: Path, settings: ApplySettings, masks: Masks) -> None:
    card = model_card(masks, settings.model, command_of(settings), data_of(Path(settings.mask_file)))
    (folder / CARD).write_text(card, encoding="utf-8")


def as_stored(model: Any, place: str) -> None:
    """Cast weights to the dtypes that they have in the files of a folder; those that go by other names to most's."""
    found: dict[str, torch.dtype] = {}
    for path in [] if (Path(place) / PACKED_FILE).is_file() else sorted(Path(place).glob("*.safetensors")):
        found |= {name: FLOATS[kind] for name, (kind, _) in read_kinds(path)[0].items() if kind in FLOATS}
    if not found:
        return
    most = Counter(found.values()).most_common(1)[0][0]
    for name, value in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        if value.dtype in FLOATS.values() and value.dtype != (wanted := found.get(name, most)):
            value.data = value.data.to(wanted)


def shard_size(place: str) -> dict[str, int]:
    """Return the size of the files of weights that ``save_pretrained`` is to write: as large as those of the source."""
    if not Path(place).is_dir():
        return {}
    shards = [path.stat().st_size for path in Path(place).glob("*.safetensors")]
    return {"max_shard_size": max(shards)} if len(shards) > 1 else {}


def command_of(settings: ApplySettings) -> str:
    """Return the command that wrote a folder, without options that are as they are by default."""
    options = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.default is not MISSING and value != field.default:
            options += [f"--{field.name}", *map(str, value if isinstance(value, tuple) else (value,))]
    words = ["multiflow", "apply", settings.model, settings.mask_file, "--out", settings.out, *options]
    return " ".join(shlex.quote(word) for word in words)


def data_of(mask_file: Path) -> str:
    """Return what masks were made on, where the record of their run lies beside them and says so."""
    try:
        found = read_facts(mask_file.parent / RESULT_FILE, "result of a run", "run the command again")
        return str(found["run"].get("data") or "")
    except (MultiflowError, KeyError, TypeError, AttributeError):
        return ""


def check_zeros(folder: Path, model: Any, masks: Masks) -> None:
    """Read a model back from its folder and make sure that it holds the weights of the pruned one, bit for bit."""
    with quiet_transformers():
        sizes_in_config = not (folder / STRUCTURE_FILE).is_file()
        again: Any = type(model).from_pretrained(folder, dtype=model.dtype) if sizes_in_config else load_model(folder)
    written = masks.find_weights(again)
    for name, weights in masks.find_weights(model).items():
        for ours, theirs in zip(weights, written[name], strict=True):
            read = theirs.detach().to(ours.dtype)
            if not torch.equal(ours.detach().cpu().contiguous().view(torch.uint8), read.contiguous().view(torch.uint8)):
                raise MultiflowError(
                    f"layer '{name}' of a {type(model).__name__} does not survive save_pretrained and from_pretrained; "
                    "apply the masks in Python with masks.apply_(model)"
                )
            dropped = theirs.detach()[~masks[name]]
            if dropped.count_nonzero() or dropped.signbit().any():
                raise MultiflowError(f"layer '{name}' holds other values than 0.0 where the mask drops weights")
