"""``multiflow shrink``: whole neurons and heads go; what is written is an ordinary smaller model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from multiflow.base.registry import import_modules
from multiflow.base.runs import whole_folder
from multiflow.base.steps import step_progress
from multiflow.base.structure import STRUCTURE_FILE
from multiflow.cli.console import announcements, one_line_warnings, percent, show, table
from multiflow.cli.settings import (
    DataOptions,
    LayerOptions,
    ModelOptions,
    Modules,
    Seed,
    chosen_adapter,
    own_first,
    parse_hyper,
)
from multiflow.families.batches import open_batches
from multiflow.families.opening import (
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    find_model,
    model_files,
    quiet_transformers,
)
from multiflow.formats import compact, export
from multiflow.methods import find_pruner
from multiflow.pruning.structured import prune_units
from multiflow.pruning.units import find_units

MODEL, RUN = "model", "units"


@own_first
@dataclass(frozen=True)
class ShrinkSettings(DataOptions, LayerOptions, ModelOptions):
    """What is to become smaller, and how.

    Args:
        model: a Hugging Face id or folder, a checkpoint file of an original release, or a bundled model (xvlm-shapes)
        data: images with captions, or images for a classifier; a bundled X-VLM or BLIP makes scenes of Shapes
        method: whose scores are summed over each neuron and head
        share: of the neurons or heads to drop, in [0, 1)
        units: mlp (neurons), heads, or all
        allocation: uniform (the same share in every MLP: a config can say it), group, or global
        no_compensate: leave the output layers as they are, instead of refitting them on what remains
        set: hyper-parameters of the method
        batches: calibration batches at most
        batch_size: pairs or images a batch
        out: folder to write, new or empty: the model in 'model', the masks in 'units'
    """

    model: Positional[str]
    out: Annotated[str, arg(metavar="DIR")]
    data: Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="")] = None
    method: Annotated[str, arg(metavar="METHOD")] = "multiflow"
    share: Annotated[float, arg(metavar="S")] = 0.5
    units: Annotated[str, arg(metavar="KIND")] = "mlp"
    allocation: Annotated[str, arg(metavar="NAME")] = "uniform"
    no_compensate: Annotated[bool, arg(help_behavior_hint="")] = False
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    modules: Modules = ()
    batches: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all, at most 3000)")] = None
    batch_size: Annotated[int, arg(metavar="B")] = 32
    seed: Seed = 0


def shrink(settings: ShrinkSettings) -> None:
    """Choose the units, remove them, write the smaller model and the masks."""
    import_modules(settings.modules)
    pruner = find_pruner(settings.method)
    hyper = parse_hyper(settings.set, pruner.hyper)
    place = find_model(settings.model)
    with whole_folder(settings.out) as out, announcements(), one_line_warnings():
        model = settings.open(place)
        adapter = chosen_adapter(model, settings)
        batches = None
        if pruner.looks_at or (settings.data is not None and not settings.no_compensate):
            batches = open_batches(model, place, settings.source())
        with step_progress() as progress:
            result = prune_units(
                model,
                settings.method,
                settings.share,
                batches,
                units=settings.units,
                allocation=settings.allocation,
                compensate=not settings.no_compensate,
                adapter=adapter,
                seed=settings.seed,
                progress=progress,
                **hyper,
            )
        with quiet_transformers():
            weights = result.weights[settings.share] if result.weights else None
            small = compact(model, result.masks[settings.share], weights, adapter=adapter)
            beside = model_files(place, TOKENIZER_FILES + PROCESSOR_FILES)
            export(small, None, out / MODEL, format="folder", beside=beside)
        result.save(out / RUN)
        sizes_in_config = not (out / MODEL / STRUCTURE_FILE).is_file()
    rows = [
        (stack.name, stack.kind, stack.group, before.count, stack.count)
        for before, stack in zip(
            find_units(model, adapter.layout(model)), find_units(small, adapter.layout(small)), strict=True
        )
        if before.count != stack.count
    ]
    before, after = (sum(p.numel() for p in one.parameters()) for one in (model, small))
    show(table("", ["layers", "units", "group", "before", "after"], rows))
    says = "its config says so" if sizes_in_config else f"{STRUCTURE_FILE} says so, for mf.load_model and this program"
    show(f"{Path(settings.out) / MODEL}: {after:,} of {before:,} weights ({percent(after / before)}); {says}")
