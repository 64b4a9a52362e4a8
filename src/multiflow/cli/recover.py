"""``multiflow recover``: from a mask file to one with kept weights that do again what the dense model did."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from multiflow.base.artifacts import read_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.files import is_regular
from multiflow.base.parallel import agree, rank
from multiflow.base.registry import import_modules
from multiflow.base.runs import identity, run_folder
from multiflow.base.steps import step_progress
from multiflow.calibration import Checkpoint
from multiflow.cli.console import announcements, print_recovered, say
from multiflow.cli.masks import fitted
from multiflow.cli.settings import (
    DataOptions,
    Device,
    LayerOptions,
    ModelOptions,
    Modules,
    Resume,
    Seed,
    chosen_adapter,
    own_first,
    processes,
    run_settings,
)
from multiflow.families.batches import open_batches
from multiflow.families.opening import bundled_models, check_model, find_device, find_model
from multiflow.masks import Masks
from multiflow.pruning.result import RESULT_FILE, RUN_FILE, Result, changed_weights
from multiflow.recovery import WAYS
from multiflow.recovery import recover as recover_model
from multiflow.recovery.run import find_ways

CHECKPOINT = "recovery.safetensors"
FILES = "recovery*.safetensors"
FREE_TO_CHANGE = ("out", "resume", "device", "workers")  # these do not alter the weights
MOST_BATCHES = 128
OWN = ("epochs", "lr", "batches_per_step", "patience", "inputs", "rank")
KNOWN = "; ".join(f"{name} ({way.summary})" for name, way in WAYS.items())


@own_first
@dataclass(frozen=True)
class RecoverSettings(DataOptions, LayerOptions, ModelOptions):
    """Which masks of which model to recover, how, and with which data.

    Args:
        model: the dense model that was pruned, as for 'multiflow prune'
        mask: a file that 'multiflow prune' or 'multiflow recover' wrote, or one of the original release
        data: as for 'multiflow prune'; a bundled X-VLM or BLIP makes scenes of Shapes where none are given
        then: further ways, one after the other, such as distill
        epochs: passes over the data at most
        lr: highest learning rate, as a share of the root mean square of the kept weights
        batches_per_step: batches whose gradients are averaged in a step, over all processes
        patience: passes without a better loss on what is held out, after which it ends
        inputs: blocks: pruned = of the model as it is by then, dense = of the dense one
        rank: lora: of the factors
        modules: Python files, folders or names of modules with a family of your own
        batches: batches at most, kept in memory; one in eight is held out
        batch_size: pairs or images a batch
        augment: paper = crops, flips and RandAugment as in the published calibration
        out: folder for the mask, the weights and result.json, new or empty
    """

    model: Positional[str]
    mask: Annotated[str, arg(metavar="FILE")]
    data: Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="")] = None
    how: Annotated[str, arg(metavar="HOW", help=KNOWN)] = "blocks"
    then: Annotated[tuple[str, ...], arg(metavar="HOW ...", help_behavior_hint="")] = ()
    epochs: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: that of HOW)")] = None
    lr: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: that of HOW)")] = None
    batches_per_step: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: that of HOW)")] = None
    patience: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: that of HOW)")] = None
    inputs: Annotated[str | None, arg(metavar="WHICH", help_behavior_hint="(default: pruned)")] = None
    rank: Annotated[int | None, arg(metavar="R", help_behavior_hint="(default: 16)")] = None
    modules: Modules = ()
    batches: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all, at most 128)")] = None
    batch_size: Annotated[int, arg(metavar="B")] = 32
    seed: Seed = 0
    augment: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: none)")] = None
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: runs/recover-HOW-HASH)")] = None
    resume: Resume = False
    device: Device = "auto"


def recover(settings: RecoverSettings) -> None:
    """Recover, write mask and weights, and print what it was worth; of several processes the first does the latter."""
    with processes(settings.device, settings) as device, announcements() if rank() == 0 else nullcontext():
        _recover(replace(settings, device=device), first=rank() == 0)


def _recover(settings: RecoverSettings, *, first: bool) -> None:
    import_modules(settings.modules)
    ways, own = (settings.how, *settings.then), {name: getattr(settings, name) for name in OWN}
    own = {name: value for name, value in own.items() if value is not None}
    find_ways(ways, own)
    find_device(settings.device)
    if settings.data is None and settings.model not in bundled_models():
        check_model(find_model(settings.model))
        raise MultiflowError("recovery needs calibration data and none were given; name some with --data SOURCE")
    place, file = find_model(settings.model), Path(settings.mask)
    masks = Masks.load(file)  # what is wrong with it is said before the model is loaded
    weights, past = changed_weights(file, masks), earlier_recoveries(file)
    what = run_settings(settings, FREE_TO_CHANGE)
    out = Path(settings.out or f"runs/recover-{'-'.join(ways)}-{identity(what)}")
    agree({name: value for name, value in asdict(settings).items() if name != "device"})
    claimed = run_folder(
        out, what, resume=settings.resume, record=RUN_FILE, ended=RESULT_FILE, keep=[FILES], passing=[FILES, RUN_FILE]
    )
    with claimed if first else nullcontext():
        model = settings.open(place, settings.device)
        adapter = chosen_adapter(model, settings)
        masks = fitted(masks, file, model)
        most = MOST_BATCHES if settings.data is not None and settings.batches is None else settings.batches
        batches = open_batches(model, place, settings.source(batches=most))
        try:
            with step_progress() if first else nullcontext() as step:
                result = recover_model(
                    model,
                    as_result(masks, weights, past),
                    None,
                    batches,
                    ways,
                    adapter=adapter,
                    seed=settings.seed,
                    checkpoint=Checkpoint(out / CHECKPOINT, keep=True),
                    progress=step,
                    **own,
                )
        except KeyboardInterrupt:
            if first and any(out.glob(FILES)):
                say(f"'{out}' keeps what has been done; go on with the same command and --resume")
            raise
        data = batches.summary()
        if first:
            told(result, mask=settings.mask, model=settings.model, data=data).save(out, run=what, data=data)
    if first:
        print_recovered(read_facts(out / RESULT_FILE, "result of a run", "run the command again"), out)


def told(result: Result, **facts: Any) -> Result:
    """Return a result whose latest recovery also says what it was made of, as plain values."""
    *past, report = result.settings["recovery"]
    return replace(result, settings={**result.settings, "recovery": [*past, {**report, **facts}]})


def earlier_recoveries(file: Path) -> list[Any]:
    """Return the recoveries that the result beside a mask file says it has been through; none where there is none."""
    place = file.with_name(RESULT_FILE)
    if not is_regular(place):
        return []
    said = read_facts(place, "result of a run", "run the command again")
    try:
        ours = any(entry["file"] == file.name for entry in said["masks"].values())
        return list(said["settings"].get("recovery", [])) if ours else []
    except (KeyError, TypeError, AttributeError) as error:
        raise MultiflowError(f"'{place}' is damaged ({error!r}); run the command again") from error


def as_result(masks: Masks, weights: Mapping[str, Any] | None, past: list[Any]) -> Result:
    """Wrap what two files hold; masks of other programs are at the sparsity that they have."""
    sparsity = masks.settings.get("sparsity", masks.sparsity)
    settings = {"hyper": {}, "pattern": "unknown", "allocation": "unknown", "seed": 0, **masks.settings}
    settings = {"method": "unknown", "model": "unknown", "batches": 0, **settings, "recovery": past}
    return Result({sparsity: masks}, None if weights is None else {sparsity: weights}, None, None, settings, {})
