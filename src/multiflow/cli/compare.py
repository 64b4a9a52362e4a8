"""``multiflow compare``: several pruners on the user's own model and data, from one calibration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from multiflow.base.artifacts import write_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.registry import import_modules
from multiflow.base.runs import whole_folder
from multiflow.base.steps import step_progress
from multiflow.base.types import short
from multiflow.cli.console import announcements, show, table
from multiflow.cli.settings import (
    DataOptions,
    Device,
    Dtype,
    LayerOptions,
    ModelOptions,
    Modules,
    Seed,
    chosen_adapter,
    own_first,
)
from multiflow.families.batches import Counted, open_batches
from multiflow.families.opening import bundled_models, find_device, find_dtype, find_model
from multiflow.pruning.comparison import compare_pruners
from multiflow.report.compare import (
    agreement_table,
    comparison_document,
    comparison_table,
    comparison_values,
    comparison_worth,
)
from multiflow.report.document import write_document

METHODS = ("magnitude", "wanda", "ria", "multiflow")


@own_first
@dataclass(frozen=True)
class CompareSettings(DataOptions, LayerOptions, ModelOptions):
    """Which pruners to compare, on which model and data.

    Args:
        model: a Hugging Face id or folder, a checkpoint file of an original release, or a bundled model (xvlm-shapes)
        data: as for 'multiflow prune'
        methods: names of 'multiflow show pruners'
        sparsity: shares of the weights to drop, in [0, 1)
        pattern: unstructured, per-row or N:M such as 2:4, for every method
        batches: to calibrate on, at most
        held_out: batches after them, on which sparse and dense model are compared
        batch_size: pairs or images a batch
        out: folder for compare.html, compare.md, compare.json and the masks, new or empty
    """

    model: Positional[str]
    data: Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="")] = None
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD ...")] = METHODS
    sparsity: Annotated[tuple[float, ...], arg(metavar="S ...", help_behavior_hint="(default: 0.63 0.75 0.9)")] = ()
    pattern: Annotated[str | None, arg(metavar="PATTERN", help_behavior_hint="(default: the method's)")] = None
    batches: Annotated[int, arg(metavar="N")] = 16
    held_out: Annotated[int, arg(metavar="N")] = 8
    batch_size: Annotated[int, arg(metavar="B")] = 32
    seed: Seed = 0
    modules: Modules = ()
    out: Annotated[str, arg(metavar="DIR")] = "runs/compare"
    device: Device = "auto"
    dtype: Dtype = "auto"


def compare(settings: CompareSettings) -> None:
    # 1. the model and its data
    import_modules(settings.modules)
    for option, number in (("--batches", settings.batches), ("--held-out", settings.held_out)):
        if number < 1:
            raise MultiflowError(f"{option} {number} was given; expected at least 1")
    device, place = find_device(settings.device), find_model(settings.model)
    find_dtype(settings.dtype)
    with announcements(), whole_folder(settings.out) as folder:
        model = settings.open(place)
        if settings.data is None and settings.model not in bundled_models():
            raise MultiflowError("comparing needs data and none were given; name some with --data SOURCE")
        adapter = chosen_adapter(model, settings)
        model.to(device=device, dtype=find_dtype(settings.dtype))
        batches = open_batches(model, place, settings.source(batches=settings.batches + settings.held_out))
        if len(batches) < 2:
            raise MultiflowError(
                f"{batches.source} gives {len(batches)} batch of {settings.batch_size}, but comparing takes other data "
                "than calibrating; give more data or a smaller --batch-size"
            )
        held = min(settings.held_out, len(batches) // 2)
        some = min(settings.batches, len(batches) - held)

        # 2. pruning and comparing
        options = {name: {"pattern": settings.pattern} for name in settings.methods} if settings.pattern else None
        with step_progress() as step:
            found = compare_pruners(
                model,
                settings.methods,
                settings.sparsity or None,
                Numbered(batches, range(some)),
                Numbered(batches, range(some, some + held)),
                adapter=adapter,
                seed=settings.seed,
                progress=step,
                options=options,
            )

        # 3. what the most faithful masks of each sparsity cost
        worth = comparison_worth(found, model, adapter, next(iter(Numbered(batches, range(some, some + 1))), None))

        # 4. what is written and printed
        data = f"{some} batches of {settings.batch_size} to calibrate and {held} to compare, from {batches.source}"
        document = comparison_document(found, settings.model, data, worth)
        write_document(document, folder / "compare.html")
        write_document(document, folder / "compare.md")
        write_facts(folder / "compare.json", {**comparison_values(found), "worth": [asdict(one) for one in worth]})
        for one in found.pruners:
            one.result.save(folder / one.method)
    for result in (comparison_table(found), *([agreement_table(found)] if len(found.pruners) > 1 else [])):
        heads = [f"{column.title}\n({column.over})" if column.over else column.title for column in result.columns]
        show(table(result.caption, heads, [[cell.text for cell in row.cells] for row in result.rows]))
    first = found.pruners[0]
    mask = Path(settings.out) / first.method / f"mask-{short(found.sparsities[0])}.safetensors"
    show(f"the page: {Path(settings.out) / 'compare.html'}; the masks lie beside it")
    show(f"next: multiflow apply {settings.model} {mask} --out DIR")


@dataclass(frozen=True)
class Numbered:
    """Some of the batches, by their numbers, as often as they are asked for."""

    batches: Counted
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch in self.batches.numbered(self.numbers) if batch is not None)
