"""``multiflow prune``: from a model and data to mask files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from torch import nn
from tyro.conf import Positional, arg

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.parallel import agree, rank
from multiflow.base.registry import import_modules
from multiflow.base.runs import identity, run_folder
from multiflow.base.steps import step_progress
from multiflow.base.types import LiveWeights
from multiflow.calibration import Checkpoint
from multiflow.cli.console import announcements, say, show, show_run
from multiflow.cli.settings import (
    DataOptions,
    Device,
    Dtype,
    LayerOptions,
    ModelOptions,
    Resume,
    Seed,
    chosen_adapter,
    own_first,
    parse_hyper,
    processes,
    run_settings,
)
from multiflow.cli.streamed import check_options, open_for_stream, run_stream
from multiflow.data.augment import AUGMENTATIONS
from multiflow.families.batches import open_batches, sample_batch
from multiflow.families.opening import bundled_models, check_model, find_device, find_dtype, find_model
from multiflow.masks import hash_weight
from multiflow.masks.sharing import mask_file
from multiflow.methods import find_pruner
from multiflow.methods.budgets import ALLOCATIONS
from multiflow.pruning import prune as prune_model
from multiflow.pruning.plan import Request, request
from multiflow.pruning.result import RESULT_FILE, RUN_FILE
from multiflow.pruning.stream import BEGUN, WORK, check_request

CHECKPOINT = "calibration.safetensors"
CHECKPOINTS = "calibration*.safetensors"  # methods in steps have one for each sparsity
FREE_TO_CHANGE = ("out", "checkpoint_every", "resume", "device", "workers")  # these do not alter the masks
STABLE = 0.995  # the share of the kept weights that --until-stable asks for


@own_first
@dataclass(frozen=True)
class PruneSettings(DataOptions, LayerOptions, ModelOptions):
    """What to prune, how, and with which data.

    Args:
        model: a Hugging Face id or folder, a checkpoint file of an original release, or a bundled model (xvlm-shapes)
        data: images with captions, or images for an image classifier: a file or folder (multiflow show data DIR); not
            needed by data-free methods; a bundled X-VLM or BLIP makes scenes of Shapes where none are given
        method: a name of 'multiflow show pruners'
        sparsity: shares of the weights to drop, in [0, 1)
        pattern: unstructured, per-row or N:M such as 2:4
        set: hyper-parameters of the method
        modules: Python files (or names of modules) with pruners of your own
        batches: calibration batches at most
        batch_size: pairs or images a batch
        seed: seed of whatever is random
        augment: paper = crops, flips and RandAugment as in the published calibration
        until_stable: stop calibrating when twice the data change at most 0.5 % of the kept weights, at every sparsity
        stream: one block of the model at a time in memory; activations lie in the output folder meanwhile
        sequential: with --stream, measure each block on what the pruned blocks before it give
        out: folder for masks and result.json, new or empty
        checkpoint_every: batches between two checkpoints of the calibration, 0 = none
    """

    model: Positional[str]
    data: Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="")] = None
    method: Annotated[str, arg(metavar="METHOD")] = "multiflow"
    sparsity: Annotated[tuple[float, ...], arg(metavar="S ...", help_behavior_hint="(default: 0.63 0.75 0.9)")] = ()
    pattern: Annotated[str | None, arg(metavar="PATTERN", help_behavior_hint="(default: the method's)")] = None
    allocation: Annotated[
        str | None,
        arg(
            metavar="NAME",
            help=f"how many weights each layer drops: {', '.join(ALLOCATIONS)}",
            help_behavior_hint="(default: the method's)",
        ),
    ] = None
    set: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    modules: Annotated[tuple[str, ...], arg(metavar="FILE ...", help_behavior_hint="")] = ()
    batches: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all, at most 3000)")] = None
    batch_size: Annotated[int, arg(metavar="B")] = 32
    seed: Seed = 0
    augment: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: none)")] = None
    until_stable: Annotated[bool, arg(help_behavior_hint="")] = False
    stream: Annotated[bool, arg(help_behavior_hint="")] = False
    sequential: Annotated[bool, arg(help_behavior_hint="")] = False
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: runs/prune-METHOD-HASH)")] = None
    checkpoint_every: Annotated[int, arg(metavar="N")] = 8
    resume: Resume = False
    device: Device = "auto"
    dtype: Dtype = "auto"


def prune(settings: PruneSettings) -> None:
    """Prune a model, write the masks and print what came of it; of several processes the first does the latter two."""
    with processes(settings.device, settings) as device, announcements() if rank() == 0 else nullcontext():
        _prune(replace(settings, device=device), first=rank() == 0)


def _prune(settings: PruneSettings, *, first: bool) -> None:
    asked = check(settings)
    place = find_model(settings.model)
    what = run_settings(settings, FREE_TO_CHANGE)
    out = Path(settings.out or f"runs/prune-{asked.pruner.name}-{identity(what)}")
    agree({name: value for name, value in asdict(settings).items() if name != "device"})
    with own_folder(out, what, settings.resume) if first else nullcontext():
        model, adapter, hashes = load(settings, place, out)
        batches: Any = None
        if asked.needs_data:
            batches = open_batches(model, place, settings.source())
        elif adapter.spares_unused and not settings.stream:  # by a made-up sample it shows which layers are used
            with suppress(MultiflowError):
                batches = [sample_batch(model, place, trust_remote_code=settings.trust_remote_code)]
        every = settings.checkpoint_every
        with step_progress() if first else nullcontext() as step:
            if settings.stream:
                result, data = run_stream(settings, asked, model, adapter, batches, out, step)
            else:
                result = prune_model(
                    model,
                    settings.method,
                    asked.sparsities,
                    batches,
                    adapter=adapter,
                    pattern=settings.pattern,
                    allocation=settings.allocation,
                    seed=settings.seed,
                    checkpoint=Checkpoint(out / CHECKPOINT, every, keep=True) if every else None,
                    progress=step,
                    until_stable=STABLE if settings.until_stable else None,
                    **asked.hyper,
                )
                data = batches.summary() if asked.needs_data else None
        masks = {s: replace(m, weights=hashes or m.weights) for s, m in result.masks.items()}
        if first:
            replace(result, masks=masks).save(out, run=what, data=data)
            shutil.rmtree(out / WORK, ignore_errors=True)
    if first:
        show_run(out)
        show(f"next: multiflow apply {settings.model} {out / mask_file(asked.sparsities[0])} --out DIR")


@contextmanager
def own_folder(out: Path, what: Mapping[str, Any], resume: bool) -> Iterator[None]:
    """Claim the output folder; whoever interrupts a run that can go on is told so."""
    passing = CHECKPOINTS, WORK, RUN_FILE  # in this order: a kill on the way leaves the record, by which it goes on
    try:
        with run_folder(
            out, what, resume=resume, record=RUN_FILE, ended=RESULT_FILE, keep=[CHECKPOINTS, BEGUN], passing=passing
        ):
            yield
    except KeyboardInterrupt:
        if (out / RUN_FILE).exists():
            say(f"'{out}' keeps what has been done; go on with the same command and --resume")
        raise


def load(settings: PruneSettings, place: str, out: Path) -> tuple[nn.Module, Adapter, dict[str, str]]:
    if settings.stream:
        streamed = open_for_stream(settings, place, out)
        return streamed, chosen_adapter(streamed, settings), {}
    model = settings.open(place)
    adapter, dtype, hashes = chosen_adapter(model, settings), find_dtype(settings.dtype), {}
    if dtype not in (None, model.dtype):
        hashes = {name: hash_weight(weight) for name, weight in LiveWeights(model, adapter.layout(model)).items()}
    return model.to(device=find_device(settings.device), dtype=dtype), adapter, hashes


def check(settings: PruneSettings) -> Request:
    import_modules(settings.modules)
    if settings.stream or settings.sequential:
        check_options(settings)
    asked = request(
        settings.method,
        settings.sparsity or None,
        pattern=settings.pattern,
        allocation=settings.allocation,
        until_stable=STABLE if settings.until_stable else None,
        hyper=parse_hyper(settings.set, find_pruner(settings.method).hyper),
    )
    if settings.stream:
        check_request(asked, sequential=settings.sequential)
    if settings.augment not in (None, *AUGMENTATIONS):
        raise unknown("augmentation", settings.augment, AUGMENTATIONS)
    find_device(settings.device)
    find_dtype(settings.dtype)
    if settings.checkpoint_every < 0:
        raise MultiflowError(f"--checkpoint-every {settings.checkpoint_every} was given; expected 0 (none) or more")
    if settings.split is not None and settings.data is None:
        raise MultiflowError(f"--split {settings.split} was given without data; name them with --data SOURCE")
    if asked.needs_data and settings.data is None and settings.model not in bundled_models():
        check_model(find_model(settings.model))
        raise MultiflowError(
            f"method '{settings.method}' needs calibration data and none were given; name some with --data SOURCE"
        )
    return asked
