"""``multiflow export``: a sparse model as a folder in which zeros cost one bit, or less."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from multiflow.base.packed import FILE, SAME, packed_parts
from multiflow.base.registry import import_modules
from multiflow.base.structure import STRUCTURE_FILE
from multiflow.cli.console import one_line_warnings, percent, show, wide_rest
from multiflow.cli.masks import fitted
from multiflow.cli.settings import LayerOptions, MaskSparsity, ModelOptions, Modules, chosen_adapter, own_first
from multiflow.families.opening import (
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    find_model,
    model_files,
    quiet_transformers,
)
from multiflow.formats import export as write
from multiflow.masks import Masks
from multiflow.pruning.result import changed_weights

WEIGHTS = (".safetensors", ".onnx", ".data", ".bin")  # ends of the names of files that hold weights


@own_first
@dataclass(frozen=True)
class ExportSettings(LayerOptions, ModelOptions):
    """Which sparse model to write, and how.

    Args:
        model: the model that the mask was made for: a folder, Hugging Face id, checkpoint file or bundled model
        mask: a file that 'multiflow prune' wrote, or one of the original release
        out: folder to write, new or empty; mf.load_model and every command open it like any model
        format: packed, folder for an ordinary one, open_clip for a CLIP as open_clip and CLIP_benchmark open it, onnx,
            or coreml
        compact: remove the neurons and heads that the mask has killed: a smaller model, faster in any runtime
        values: how kept weights are stored: bf16, fp16, fp32 (exact where the model is of that type) or int8
        rest: packed: how what is not pruned is stored: same (bit for bit, in two bytes where nothing is lost by it), or
            bf16, fp16 or fp32, rounded to that
        compress: zlib, zstd (needs the package zstandard) or none
    """

    model: Positional[str]
    mask: Annotated[str, arg(metavar="FILE")]
    out: Annotated[str, arg(metavar="DIR")]
    sparsity: MaskSparsity = None
    format: Annotated[str, arg(metavar="NAME")] = "packed"
    values: Annotated[str, arg(metavar="TYPE")] = "bf16"
    rest: Annotated[str, arg(metavar="TYPE")] = SAME
    compress: Annotated[str, arg(metavar="NAME")] = "zlib"
    compact: Annotated[bool, arg(help_behavior_hint="")] = False
    modules: Modules = ()


def export(settings: ExportSettings) -> None:
    import_modules(settings.modules)
    place = find_model(settings.model)
    masks = Masks.load(settings.mask, settings.sparsity)
    changed = changed_weights(Path(settings.mask), masks)
    model = settings.open(place)
    adapter = chosen_adapter(model, settings) if settings.compact else None
    masks = fitted(masks, settings.mask, model)
    beside = model_files(place, TOKENIZER_FILES + PROCESSOR_FILES)
    with quiet_transformers(), one_line_warnings():
        folder = write(
            model,
            masks,
            settings.out,
            settings.format,
            settings.values,
            settings.compress,
            changed,
            beside,
            compact=settings.compact,
            adapter=adapter,
            rest=settings.rest,
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in WEIGHTS)
    dense = 2 * sum(parameter.numel() for parameter in model.parameters())
    speed = f"How fast it is here: multiflow speed {folder}"
    if settings.format == "coreml":
        speed = "Its weights were read back and are those of the model; it runs on macOS alone."
    if settings.compact and (folder / STRUCTURE_FILE).is_file():
        speed = f"Its config cannot say its sizes: {STRUCTURE_FILE} does, for mf.load_model and this program. {speed}"
    show(
        f"{folder}: {type(model).__name__} with {percent(masks.sparsity)} of the prunable weights zero, "
        f"{size / 1e6:.1f} MB; dense in bfloat16 {dense / 1e6:.1f} MB. {speed}"
    )
    if settings.format == "packed" and (hint := wide_rest(packed_parts(folder / FILE))):
        show(hint)
