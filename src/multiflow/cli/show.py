"""``multiflow show``: what there is, and what is in a model, a mask, a run or a data set."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from rich.table import Table
from torch import nn
from tyro.conf import Positional, arg

from multiflow.base.adapter import Adapter, prunable_shares
from multiflow.base.errors import MultiflowError, did_you_mean, unknown
from multiflow.base.packed import FILE, PackedPart, packed_parts
from multiflow.base.registry import import_modules
from multiflow.base.types import Layer, Layout, LiveWeights
from multiflow.cli import COMMANDS
from multiflow.cli.console import find_run, megabytes, percent, show_run, table, wide_rest
from multiflow.cli.console import show as put
from multiflow.cli.masks import compare_masks, is_mask_file, show_masks
from multiflow.cli.settings import LayerOptions, ModelOptions, Modules, chosen_adapter, own_first, parse
from multiflow.data import BrokenItem, Dataset, Mixed, Pair, Question, RegionItem, open_data
from multiflow.data.dataset import AnyData, Clip
from multiflow.data.images import WHOLE, NoSuchSplit
from multiflow.data.items import missing_images
from multiflow.data.layouts import LAYOUTS
from multiflow.data.source import is_labelled, open_labelled
from multiflow.families import adapter_for
from multiflow.families.batches import sample_batch
from multiflow.families.family import FAMILIES, model_types
from multiflow.families.opening import bundled_models, find_model
from multiflow.methods import PRUNERS
from multiflow.methods.budgets import ALLOCATIONS
from multiflow.pruning.unused import find_unused, left_out
from multiflow.tasks.task import TASKS

WHAT = "pruners, models, tasks, layouts, MODEL, MASK_FILE [MASK_FILE], RUN_DIR or data DIR"


@own_first
@dataclass(frozen=True)
class ShowSettings(LayerOptions, ModelOptions):
    """What to show.

    Args:
        what: pruners | models | tasks | layouts | MODEL | MASK_FILE | MASK_FILE MASK_FILE (how far two agree) |
            RUN_DIR | data DIR
        model: of mask files of the original release, the model that they are for: it knows the groups of the layers
        images: of a data set, the folder of the images that it names
        image_column: of a data set, the column or key that holds the images
        text_column: of a data set, the column or key that holds the texts
    """

    what: Annotated[Positional[tuple[str, ...]], arg(help_behavior_hint="")]
    model: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None
    modules: Modules = ()
    images: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: beside the data)")] = None
    image_column: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: told by its name)")] = None
    text_column: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: told by its name)")] = None


def show(settings: ShowSettings) -> None:
    import_modules(settings.modules)
    match settings.what:
        case []:
            parse(ShowSettings, COMMANDS["show"], ["--help"])
        case [name] if name in LISTS:
            for found in LISTS[name]():
                put(found)
        case ["data", source]:
            how = {name: getattr(settings, name) for name in ("images", "image_column", "text_column")}
            show_data(source, {name: given for name, given in how.items() if given is not None})
        case [first, second]:
            compare_masks(first, second, mask_model(settings))
        case [source] if is_mask_file(source):
            show_masks(source, mask_model(settings))
        case [source] if find_run(source):
            show_run(Path(source))
        case [source]:
            if did_you_mean(source, LISTS) and not Path(source).exists():
                raise unknown("name", source, [*LISTS, *bundled_models(), "a file or folder"])
            place = find_model(source)
            model = settings.open(place)
            adapter, unseen = used_layers(
                model, place, chosen_adapter(model, settings), trust=settings.trust_remote_code
            )
            show_model(model, source, adapter)
            if unseen:
                put(unseen)
            if (packed := Path(place) / FILE).is_file():
                parts = packed_parts(packed)
                put(packed_table(packed, parts))
                if hint := wide_rest(parts):
                    put(hint)
        case given:
            raise MultiflowError(f"'multiflow show' got {len(given)} names; expected {WHAT}")


def mask_model(settings: ShowSettings) -> nn.Module | None:
    return None if settings.model is None else settings.open(find_model(settings.model))


def list_pruners() -> list[object]:
    rows = [
        (
            name,
            pruner.summary,
            ", ".join(pruner.looks_at) or "no data",
            f"{pruner.pattern}, {pruner.allocation}",
            " ".join(f"{key}={value}" for key, value in pruner.hyper.items()) or "-",
        )
        for name, pruner in PRUNERS.items()
    ]
    shares = [
        (name, (inspect.getdoc(way.function) or "").split("\n\n")[0], ", ".join(way.statistics) or "no data")
        for name, way in ALLOCATIONS.items()
    ]
    return [
        table("", ["pruner", "what it does", "needs", "pattern, allocation", "hyper-parameters"], rows),
        table("", ["allocation", "what it does", "needs"], shares),
    ]


def list_models() -> list[object]:
    rows = [(name, "bundled", "inside this package: name it like a model") for name in bundled_models()]
    rows += [(name, "family", "a Hugging Face id or folder with this config.model_type") for name, *_ in model_types()]
    rows += [
        (name, "original release", f"a checkpoint file with --family {name}")
        for name, family in FAMILIES.items()
        if family.release
    ]
    rows.append(
        ("any other of transformers", "read from the model", "a Hugging Face id or folder: CLIP, LLaVA, Qwen-VL, ...")
    )
    return [table("", ["model", "kind", "how to name it"], rows)]


def list_tasks() -> list[object]:
    rows = [(name, (inspect.getdoc(inspect.getmodule(TASKS[name].evaluate)) or "").split("\n\n")[0]) for name in TASKS]
    return [table("", ["task", "what it is"], rows)]


def list_layouts() -> list[object]:
    rows = [(name, layout.form, "classification" if layout.labelled else "") for name, layout in LAYOUTS.items()]
    return [
        table("", ["layout", "what it looks like", "for"], rows),
        "A folder with one sub-folder of pairs and one of regions is both; several sources are joined as A+B.",
    ]


LISTS = {"pruners": list_pruners, "models": list_models, "tasks": list_tasks, "layouts": list_layouts}


MOST = 2_000_000_000  # weights of a model that is run on one sample only to be shown


def used_layers(model: nn.Module, place: str, adapter: Adapter, *, trust: bool) -> tuple[Adapter, str]:
    """Run a model on a made-up sample, and return its adapter without layers that it does not use.

    Returns:
        The adapter, and a sentence that says why that was not looked at; empty where it was.
    """
    if not adapter.spares_unused:
        return adapter, ""
    size = sum(parameter.numel() for parameter in model.parameters())
    unseen = "layers that the output does not depend on were not looked for, multiflow prune looks"
    if size > MOST:
        return adapter, f"{unseen}: it has {size / 1e9:.1f} billion weights"
    try:
        sample = sample_batch(model, place, trust_remote_code=trust)
    except MultiflowError as error:
        return adapter, f"{unseen}: {error}"
    layout = adapter.layout(model)
    return left_out(model, adapter, layout, find_unused(model, adapter, layout, [sample])), ""


PACKED_PARTS = {
    "bitmap": "which weights are kept: a bit each",
    "values": "the weights that are kept",
    "scales": "a number a row of int8",
    "dense": "tensors with few zeros",
    "header": "names, checksums",
}
"""Part of a packed file -> what it holds."""


def packed_table(path: Path, parts: Sequence[PackedPart]) -> Table:
    """Lay out what each part of a packed file takes, and what the same tensors take dense."""
    whole, dense = sum(part.size for part in parts), sum(part.dense for part in parts)
    rows = [
        (
            part.part,
            PACKED_PARTS[part.part] + stored_in(part.types),
            part.tensors or "-",
            megabytes(part.size),
            percent(part.size / whole),
        )
        for part in parts
    ]
    rows.append(("in all", f"{percent(whole / dense)} of {megabytes(dense)} dense", "-", megabytes(whole), percent(1)))
    return table(f"{path.name} by part", ["part", "holds", "tensors", "size", "of the file"], rows)


def stored_in(types: Mapping[str, int]) -> str:
    """Say in which types tensors are stored, the largest share first.

    >>> stored_in({"int64": 80, "bfloat16": 3_000_000}), stored_in({})
    (': bfloat16 3.0 MB, int64 0.1 kB', '')
    """
    listed = sorted(types.items(), key=lambda of: -of[1])
    return ": " * bool(types) + ", ".join(f"{name} {megabytes(size)}" for name, size in listed)


BLOCK_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def show_model(model: nn.Module, name: str, adapter: Adapter | None = None) -> None:
    """Print the layers of a model, alike ones of a stack of blocks in one row, their groups and what stays dense."""
    adapter = adapter or adapter_for(model)
    layout = adapter.layout(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    rows = [
        (
            spanned(alike),
            alike[0].group,
            " x ".join(map(str, alike[0].shape)),
            len(alike),
            f"{sum(x.size for x in alike):,}",
        )
        for alike in blocks(layout)
    ]
    title = f"{name}: {type(model).__name__}, family {adapter.name}, {total:,} weights"
    put(table(title, ["prunable layers", "group", "out x in", "layers", "weights"], rows))
    of_tower = prunable_shares(model, layout, adapter.towers)
    groups = [
        (
            group,
            len(layers),
            f"{(count := sum(layer.size for layer in layers)):,}",
            percent(count / total),
            percent(of_tower[group]) if group in of_tower else "-",
        )
        for group, layers in layout.groups.items()
    ]
    groups.append(("in all", len(layout), f"{layout.size:,}", percent(layout.size / total), "-"))
    put(table("", ["group", "layers", "weights", "of the model", "prunable of its towers"], groups))
    dense = [
        (where, kind, f"{count:,}", percent(count / total), why)
        for where, kind, count, why in stays_dense(model, layout, adapter.dense)
    ]
    put(table("", ["stays dense", "kind", "weights", "of the model", "why"], dense))


def blocks(layout: Layout) -> Iterator[list[Layer]]:
    """Gather the layers that differ in the number of their block alone, group by group."""
    for layers in layout.groups.values():
        alike: dict[tuple[str, tuple[int, int]], list[Layer]] = {}
        for layer in layers:
            alike.setdefault((BLOCK_NUMBER.sub("*", layer.name), layer.shape), []).append(layer)
        yield from alike.values()


def spanned(layers: list[Layer]) -> str:
    """Write the names of layers that differ in numbers as one.

    >>> spanned([Layer(f"layer.{i}.fc", (2, 2), "text") for i in range(6)])
    'layer.{0-5}.fc'
    """
    numbers = [BLOCK_NUMBER.findall(layer.name) for layer in layers]
    spans = iter([span(sorted({int(n) for n in column})) for column in zip(*numbers, strict=True)])
    return BLOCK_NUMBER.sub(lambda _: next(spans), layers[0].name)


def span(numbers: list[int]) -> str:
    """Write numbers as ranges: one alone as it is, several in braces.

    >>> span([3]), span([0, 1, 2, 6])
    ('3', '{0-2,6}')
    """
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"


def stays_dense(model: nn.Module, layout: Layout, why: Mapping[str, str]) -> list[tuple[str, str, int, str]]:
    """List what is not pruned: other linear layers and lone parameters by name, alike ones of a stack of blocks in one
    row, the rest summed by kind; with the reason, where the adapter gives one.
    """
    covered: dict[int, int] = {}  # identity of a parameter -> how many of its weights are pruned
    for name, place in LiveWeights(model, layout).places.items():
        covered[id(place.whole)] = covered.get(id(place.whole), 0) + layout[name].size
    seen = set()
    listed: dict[tuple[str, str, str], int] = {}
    sums: dict[str, int] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            dense = parameter.numel() - covered.get(id(parameter), 0)
            if id(parameter) in seen or not dense:
                continue
            seen.add(id(parameter))
            full = f"{path}.{name}".lstrip(".")
            reason = why.get(path, why.get(full, ""))
            if isinstance(module, nn.Linear) and name == "weight":
                at = (BLOCK_NUMBER.sub("*", path) if reason else path, "Linear", reason)
                listed[at] = listed.get(at, 0) + dense
            elif type(module).__module__.startswith("torch.nn") and full not in why:
                kind = "biases of Linear" if isinstance(module, nn.Linear) else type(module).__name__
                sums[kind] = sums.get(kind, 0) + dense
            else:
                at = (BLOCK_NUMBER.sub("*", full), "Parameter", reason)
                listed[at] = listed.get(at, 0) + dense
    rows = [(where, kind, count, reason) for (where, kind, reason), count in listed.items()]
    return [*rows, *(("all", kind, count, "") for kind, count in sums.items())]


SPLITS = ("train", "val", "test")
SAMPLES = 3
NAMED = 5
DEPTH = 2


def show_data(source: str, how: Mapping[str, str] = MappingProxyType({})) -> None:
    """Print the count and the first samples of every data set and split at a place on disk, and what is missing.

    Args:
        source: a file or folder.
        how: arguments of `open_data`: images, image_column, text_column.

    Raises:
        MultiflowError: there are no data, or a split of theirs cannot be opened; the others are printed before.
    """
    wrong: list[MultiflowError] = []
    path = Path(source).expanduser()
    try:
        found = data_sets(path, how, wrong=wrong)
    except MultiflowError:
        if not is_labelled(path):
            raise
        found = labelled(path)
    missing = [missing_images(data) for _, data in found]
    rows = [
        (data.source, data.layout, split or "-", data.kind, len(data), len(data.skipped), len(lacking))
        for (split, data), lacking in zip(found, missing, strict=True)
    ]
    put(table(source, ["source", "layout", "split", "kind", "items", "skipped", "missing files"], rows))
    for (split, data), lacking in zip(found, missing, strict=True):
        lines = [line for item in islice(samples(data), SAMPLES) for line in item]
        put("", f"{data.source}{f' ({split})' if split else ''}", *(f"  {line}" for line in lines))
        for what, skips in (("missing", lacking), ("skipped", data.skipped)):
            if skips:
                listed = ", ".join(f"{skip.key} ({skip.reason})" for skip in skips[:NAMED])
                more = f" and {len(skips) - NAMED} more" if len(skips) > NAMED else ""
                put(f"  {len(skips)} {what}: {listed}{more}")
    if wrong:
        raise wrong[0]


def labelled(path: Path) -> list[tuple[str, Dataset[Any]]]:
    found = []
    for split in (*SPLITS, WHOLE):
        with suppress(NoSuchSplit):
            data = open_labelled(path, split)
            found.append((split, replace(data, layout=f"{len(data.classes)} classes")))
    return found


def data_sets(
    path: Path,
    how: Mapping[str, str] = MappingProxyType({}),
    depth: int = DEPTH,
    wrong: list[MultiflowError] | None = None,
) -> list[tuple[str, Dataset[Any]]]:
    """Find the data sets in the folders below a path, or else at the path itself: (split or "", data).

    A split that cannot be opened, of data whose others can, is noted in ``wrong``.
    """
    wrong = [] if wrong is None else wrong
    found: list[tuple[str, Dataset[Any]]] = []
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() and depth else []:
        try:
            found += data_sets(folder, how, depth - 1, wrong)
        except MultiflowError:  # no data set
            continue
    if found:
        return found
    opened = open_splits(path, how, wrong) or [("", open_data(path, **how))]
    parts = [(split, (data.pairs, data.regions) if isinstance(data, Mixed) else (data,)) for split, data in opened]
    return [(split, data) for split, several in parts for data in several]


def open_splits(path: Path, how: Mapping[str, str], wrong: list[MultiflowError]) -> list[tuple[str, AnyData]]:
    """Open every split that a data set has; note what is wrong with the others if it has one that opens."""
    opened: list[tuple[str, AnyData]] = []
    failed = []
    for split in SPLITS:
        try:
            opened.append((split, open_data(path, split=split, **how)))
        except NoSuchSplit:
            continue
        except MultiflowError as error:
            failed.append(MultiflowError(f"split '{split}' cannot be opened: {error}"))
    wrong += failed if opened else []
    return opened


def samples(data: Dataset[Any]) -> Iterator[list[str]]:
    for number in range(len(data)):
        try:
            yield describe(data[number])
        except BrokenItem as error:
            yield [f"{error.skip.key}: {error.skip.reason}"]


def describe(item: Pair | RegionItem | Question | Clip) -> list[str]:
    if isinstance(item, Clip):
        return [f"{item.key}, {item.sound.seconds:.1f} seconds at {item.sound.rate} Hz", f"    {item.text}"]
    size = " x ".join(map(str, getattr(item.image, "size", ())))
    head = f"{item.key}, {size} pixels"
    match item:
        case Pair():
            texts = list(item.captions)
        case Question():
            texts = [f"{item.question} {', '.join(dict.fromkeys(item.answers)) or '(no answers)'}"]
        case _:
            texts = [f"{region.captions[0]}, {box(region.box)}" for region in item.regions]
    return [head, *(f"    {text}" for text in texts[:SAMPLES])]


def box(given: tuple[float, ...] | None) -> str:
    return "the whole image" if given is None else "box " + " ".join(f"{value:g}" for value in given)
