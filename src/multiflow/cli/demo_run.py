"""What a demo measures: one calibration pass, masks by every method, retrieval by every sparse model."""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.cli.progress import Step
from multiflow.data import to_pixels
from multiflow.families.batches import Source, open_batches
from multiflow.families.opening import OWN_TOKENIZER, fitting_tokenizer, model_files, open_model
from multiflow.families.xvlm import XVLMForPretraining
from multiflow.methods import find_pruner
from multiflow.pruning import calibrate, prune
from multiflow.pruning.plan import versions
from multiflow.pruning.result import Result, mask_file
from multiflow.report.values import Demo, Example, Find, Pruned, most_telling
from multiflow.tasks.retrieval.task import RetrievalResult, evaluate_retrieval
from multiflow.worlds.shapes import describe, make_scenes, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from multiflow.cli.demo import DemoSettings

MASKS = "masks"


def measure(settings: DemoSettings, place: str, folder: Path, command: str, step: Step) -> Demo:
    """Prune the model at ``place`` in every way, write the masks into the folder, and measure what each model finds."""
    phases: dict[str, float] = {}
    with timed(phases, "load"):
        model = open_xvlm(place, settings)
        tokenizer = open_tokenizer(place, settings, model.config.text["vocab_size"])
        side = model.config.image_size
    with timed(phases, "draw"):
        scenes = make_scenes("test", settings.scenes, seed=settings.seed)
        images = [render(scene, side) for scene in scenes]
        captions = [describe(scene, 1)[0] for scene in scenes]
        pixels = torch.from_numpy(to_pixels(images, side))
        source = Source(None, batches=settings.batches, batch_size=settings.batch_size, seed=settings.seed)
        batches = open_batches(model, place, source)
    with timed(phases, "calibrate"):
        shared = [find_pruner(method) for method in settings.method if find_pruner(method).shares_pass]
        needs = dict.fromkeys(name for pruner in shared for name in pruner.statistics)
        stats = calibrate(model, batches, statistics=list(needs), progress=step) if needs else None
    with timed(phases, "prune"):
        results = {}
        for method in settings.method:
            data = stats if find_pruner(method).shares_pass else batches
            results[method] = prune(model, method, settings.sparsity, data, seed=settings.seed, progress=step)
    with timed(phases, "save"):
        for method, result in results.items():
            result.save(folder / MASKS / method)
    with timed(phases, "evaluate"):
        cells = [(method, sparsity) for method, result in results.items() for sparsity in result.masks]

        def search(done: int) -> RetrievalResult:
            found = evaluate_retrieval(model, pixels, [[c] for c in captions], tokenizer, shortlist=settings.shortlist)
            step("evaluate", done, len(cells) + 1)
            return found

        dense = search(1)
        found = {}
        for done, (method, sparsity) in enumerate(cells, start=2):
            with pruned(model, results[method], sparsity):
                found[method, sparsity] = search(done)
    rows = tuple(
        _row(method, sparsity, results[method], found[method, sparsity], folder, phases["calibrate"])
        for method, sparsity in cells
    )
    shown = most_telling(rows, chance=100 / settings.scenes)
    models = {"dense": dense, **{method: found[method, shown] for method in results}}
    examples = choose(_examples(models, settings.scenes), settings.examples)
    seen = sorted({i for example in examples for i in example.scenes})
    return Demo(
        model=Path(settings.model).name,
        parameters=sum(p.numel() for p in model.parameters()),
        layout=next(iter(results.values())).masks[settings.sparsity[0]].layout.layers,
        scenes=settings.scenes,
        shortlist=settings.shortlist,
        calibration=batches.seen,
        dense=dense.reranked,
        dense_itc=dense.itc,
        rows=rows,
        shown=shown,
        examples=tuple(examples),
        captions={i: captions[i] for i in seen},
        pictures={i: png(images[i]) for i in seen},
        image_size=side,
        phases=phases,
        settings=asdict(settings),
        versions={**versions(), "python": platform.python_version()},
        command=command,
        files={p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()},
    )


def open_xvlm(place: str, settings: DemoSettings) -> XVLMForPretraining:
    """Load the model; one that is no X-VLM is an error."""
    model = open_model(place, None, None, settings.device, settings.dtype)
    if not isinstance(model, XVLMForPretraining):
        raise MultiflowError(
            f"model '{settings.model}' is a {type(model).__name__}; the demo searches with the heads of an X-VLM: "
            "give a folder that 'multiflow pretrain' wrote, or leave --model out"
        )
    return model


def open_tokenizer(place: str, settings: DemoSettings, vocabulary: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside the model: the demo knows no other."""
    try:
        if not model_files(place, OWN_TOKENIZER):
            raise MultiflowError(f"it has no {' or '.join(OWN_TOKENIZER)}")
        return fitting_tokenizer(None, place, vocabulary)
    except MultiflowError as error:
        raise MultiflowError(
            f"model '{settings.model}' comes without a tokenizer that fits: {str(error).split('; ')[0]}; "
            "give a folder that 'multiflow pretrain' wrote, or leave --model out"
        ) from error


@contextmanager
def timed(phases: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that the block takes."""
    begun = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - begun


@contextmanager
def pruned(model: nn.Module, result: Result, sparsity: float) -> Iterator[None]:
    """Apply a result inside the block; afterwards every weight is what it was, bit for bit."""
    weights = [weight for several in result.masks[sparsity].find_weights(model).values() for weight in several]
    originals = [weight.detach().clone() for weight in weights]
    try:
        result.apply_(model, sparsity)
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


def choose(examples: Iterable[Example], count: int) -> list[Example]:
    """Return scenes about which the sparse models disagree: one of each kind in turn, the common kinds first.

    The kind of a scene is who is right about it; the dense model, which comes first in every example, does not count as
    disagreeing.
    """
    kinds: dict[tuple[bool, ...], list[Example]] = {}
    for example in examples:
        kinds.setdefault(example.verdicts, []).append(example)
    ranked = sorted(kinds, key=lambda kind: (len(set(kind[2:])) < 2, -len(kinds[kind])))
    turns = zip_longest(*(kinds[kind] for kind in ranked))
    return [example for turn in turns for example in turn if example is not None][:count]


def png(image: np.ndarray) -> bytes:
    """Return a picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return file.getvalue()


def _row(
    method: str, sparsity: float, result: Result, found: RetrievalResult, folder: Path, calibration: float
) -> Pruned:
    masks = result.masks[sparsity]
    file = f"{MASKS}/{method}/{mask_file(sparsity)}"
    return Pruned(
        method=method,
        sparsity=sparsity,
        achieved=masks.sparsity,
        groups=masks.group_sparsities(),
        layers=masks.sparsities(),
        quality=found.reranked,
        itc=found.itc,
        hits="".join(map(str, ((found.text_ranks == 0).int() + (found.image_ranks == 0).int()).tolist())),
        prune_seconds=result.seconds + (calibration if result.stats is not None else 0.0),
        mask_file=file,
        mask_bytes=(folder / file).stat().st_size,
    )


def _examples(models: dict[str, RetrievalResult], count: int) -> Sequence[Example]:
    """What every model puts first, scene by scene."""
    firsts = {
        name: list(zip(found.top_texts[:, 0].tolist(), found.top_images[:, 0].tolist(), strict=True))
        for name, found in models.items()
    }
    return [Example(i, tuple(Find(name, *first[i]) for name, first in firsts.items())) for i in range(count)]
