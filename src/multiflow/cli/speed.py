"""``multiflow speed``: how fast and how large a model is here, dense and in every form that its zeros allow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import Positional, arg

from multiflow.base.artifacts import write_facts
from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.base.registry import import_modules
from multiflow.base.steps import step_progress
from multiflow.cli.console import one_line_warnings, say, show, table
from multiflow.cli.masks import fitted
from multiflow.cli.settings import LayerOptions, ModelOptions, Modules, chosen_adapter, own_first
from multiflow.families.opening import find_model, open_model, quiet_transformers
from multiflow.formats import speed as measure
from multiflow.formats.speeds import FORMS, SAMPLES
from multiflow.masks import Masks
from multiflow.pruning.result import changed_weights
from multiflow.report.document import markdown, page
from multiflow.report.speed import speed_document


@own_first
@dataclass(frozen=True)
class SpeedSettings(LayerOptions, ModelOptions):
    """What to measure.

    Args:
        model: a folder, packed ones included, a Hugging Face id, a checkpoint file or a bundled model
        mask: a file that 'multiflow prune' wrote for it; without one, what is zero in the model counts
        beside: further models for the same inputs, such as a smaller one
        samples: how many at a time
        forms: which forms
        seconds: about how long to measure
        threads: of torch and of the kernels
        clock: wall, or cpu for the seconds that processors spend on this program, on a machine that others use
        out: folder for speed.html, speed.md and speed.json
    """

    model: Positional[str]
    mask: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    beside: Annotated[tuple[str, ...], arg(metavar="MODEL ...", help_behavior_hint="")] = ()
    samples: Annotated[tuple[int, ...], arg(metavar="N ...", help_behavior_hint="(default: 1 8 64)")] = ()
    forms: Annotated[
        tuple[str, ...],
        arg(metavar="FORM ...", help_behavior_hint=f"(default: all but sparse-fp32 of {', '.join(FORMS)})"),
    ] = ()
    seconds: Annotated[float, arg(metavar="S")] = 60.0
    clock: Annotated[str, arg(metavar="NAME")] = "wall"
    threads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: torch's)")] = None
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: none, the table is printed)")] = None
    modules: Modules = ()


def speed(settings: SpeedSettings) -> None:
    """Measure, print the table and the sentence, and write the page if a folder was given."""
    if settings.threads is not None and settings.threads < 1:
        raise MultiflowError(f"--threads {settings.threads} was given; expected at least 1")
    import_modules(settings.modules)
    place, trust = find_model(settings.model), settings.trust_remote_code
    model = settings.open(place)
    masks, weights = None, None
    if settings.mask is not None:
        masks = Masks.load(settings.mask)
        weights = changed_weights(Path(settings.mask), masks)
        masks = fitted(masks, settings.mask, model)
    others = {
        name: open_model(find_model(name), None, None, "cpu", trust_remote_code=trust) for name in settings.beside
    }
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(settings.threads or threads)
        with quiet_transformers(), one_line_warnings(), step_progress() as progress:
            found = measure(
                model,
                masks,
                samples=settings.samples or SAMPLES,
                forms=settings.forms or None,
                others=others,
                adapter=chosen_adapter(model, settings),
                weights=weights,
                seconds=settings.seconds,
                clock=settings.clock,
                progress=progress,
            )
    finally:
        torch.set_num_threads(threads)
    head, lines = found.rows()
    show(table(f"{settings.model}: {', '.join(map(str, found.machine.values()))}", head, lines))
    for form, why in found.left_out.items():
        say(f"{form}: {why}")
    show(found.sentence)
    if settings.out is not None:
        document = speed_document(found)
        write_atomically(Path(settings.out) / "speed.html", page(document))
        write_atomically(Path(settings.out) / "speed.md", markdown(document))
        write_facts(Path(settings.out) / "speed.json", found.to_dict())
        show(f"written to {settings.out}: speed.html, speed.md, speed.json")
