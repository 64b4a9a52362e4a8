"""A grid of one model and one task without training: what the bundled model can still find when it is pruned.

The model searches held-out scenes of Shapes, dense and pruned by every method at every sparsity. Each of these is a
`Cell`, each method has its `Pruning`, as in a benchmark; one calibration pass serves all methods.
"""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.base.steps import Step
from multiflow.base.types import Layer
from multiflow.bench.pruning import pruning_record
from multiflow.bench.records import DENSE, Cell, Pruning
from multiflow.data import to_pixels
from multiflow.families.batches import Source, open_batches
from multiflow.families.opening import OWN_TOKENIZER, fitting_tokenizer, model_files, open_model
from multiflow.families.pairs import PairModel
from multiflow.formats.worth import FormWorth, measure_worth
from multiflow.masks.files import mask_file
from multiflow.methods import find_pruner
from multiflow.pruning import calibrate, prune
from multiflow.pruning.plan import versions
from multiflow.pruning.result import Result
from multiflow.tasks.retrieval.rerank import RetrievalResult, evaluate_retrieval
from multiflow.tasks.retrieval.task import TASK, retrieval_figures
from multiflow.worlds.shapes import describe, make_scenes, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKS = "masks"
NEAR_CHANCE = 3
"""A recall below so many times chance counts as lost."""


@dataclass(frozen=True)
class Find:
    """What one model puts first for a test scene: for its picture a caption, for its caption a picture.

    Both are numbers of test scenes; right is the number of the scene itself.
    """

    method: str
    caption: int
    picture: int


@dataclass(frozen=True)
class Example:
    """A test scene and what every model finds for it, the dense one first."""

    scene: int
    finds: tuple[Find, ...]

    @property
    def scenes(self) -> set[int]:
        """All scenes that are to be shown: its own and those of the finds."""
        return {self.scene} | {found for find in self.finds for found in (find.caption, find.picture)}

    @property
    def verdicts(self) -> tuple[bool, ...]:
        """Whether each find is right: caption and picture, model by model."""
        return tuple(found == self.scene for find in self.finds for found in (find.caption, find.picture))


@dataclass(frozen=True)
class Demo:
    """Everything a demo found."""

    model: str  # name of the model
    parameters: int  # number of its weights
    layout: tuple[Layer, ...]  # its prunable layers
    scenes: int  # number of test scenes, each with one caption
    shortlist: int  # candidates that are re-ranked
    calibration: int  # number of image-text pairs of the calibration pass
    dense: Cell  # the cell of the dense model
    # those of the sparse models, by method and sparsity. `Cell.each` is for each scene the share of its two searches
    # that have the right answer first, in percent
    cells: tuple[Cell, ...]
    prunings: tuple[Pruning, ...]  # one a method
    shown: float  # the sparsity of the headline and of the examples
    examples: tuple[Example, ...]  # a few test scenes
    captions: Mapping[int, str] = field(repr=False)  # captions of the scenes that the examples need, by number
    pictures: Mapping[int, bytes] = field(repr=False)  # their pictures as PNG files
    image_size: int  # side of the pictures in pixels
    phases: Mapping[str, float]  # what was done -> seconds
    settings: Mapping[str, Any]  # the settings of the run
    command: str  # the command that repeats the run
    files: Mapping[str, int]  # files of the run besides the report -> size in bytes
    worth: tuple[FormWorth, ...] = ()  # what the best sparse models cost on this machine, and the dense one

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.pruner for cell in self.cells))

    @property
    def sparsities(self) -> tuple[float, ...]:
        return tuple(sorted({cell.sparsity for cell in self.cells}))

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer.group for layer in self.layout))

    @property
    def chance(self) -> float:
        """Recall@1 of guessing, in percent."""
        return 100 / self.scenes

    def cell(self, method: str, sparsity: float) -> Cell:
        return next(cell for cell in self.cells if (cell.pruner, cell.sparsity) == (method, sparsity))

    def seconds(self, method: str) -> float:
        """Return the seconds to the masks of all sparsities of a method, calibration included if it needs one."""
        return next(one.calibration + one.selection for one in self.prunings if one.pruner == method)

    def leaders(self, sparsity: float) -> list[str]:
        """Return the best methods of a sparsity, down to the last that is too close to the first; none near chance."""
        here = sorted((cell for cell in self.cells if cell.sparsity == sparsity), key=lambda cell: -_score(cell))
        if _score(here[0]) < NEAR_CHANCE * self.chance:
            return []
        last = max(i for i, cell in enumerate(here) if i == 0 or too_close(here[0].each, cell.each))
        return [cell.pruner for cell in here[: last + 1]]


def mask_path(method: str, sparsity: float) -> str:
    return f"{MASKS}/{method}/{mask_file(sparsity)}"


def _score(cell: Cell) -> float:
    assert cell.score is not None
    return cell.score


def most_telling(cells: Sequence[Cell], chance: float) -> float:
    """Return the sparsity at which the methods differ most, or the lowest one where all are near chance everywhere.

    The worst method of a sparsity does not count: most often it is at chance.
    """
    found: dict[float, list[float]] = {}
    for cell in cells:
        found.setdefault(cell.sparsity, []).append(_score(cell))
    alive = [s for s in found if max(found[s]) >= NEAR_CHANCE * chance]
    return max(alive, key=lambda s: pstdev(sorted(found[s])[len(found[s]) > 2 :])) if alive else min(found)


def too_close(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the figures of two models differ, scene by scene, by less than chance would explain 95 times of 100.

    >>> too_close([100, 100, 100, 100], [100, 100, 100, 50]), too_close([100] * 5, [0, 0, 50, 0, 0])
    (True, False)
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return abs(fmean(differences)) <= 1.96 * stdev(differences) / sqrt(len(differences))


def measure(place: str, folder: Path, settings: Any, command: str, step: Step) -> Demo:
    """Prune a model in every way, write the masks into a folder, and measure what each model finds.

    Args:
        place: folder of an X-VLM that knows Shapes.
        folder: of the demo; masks go to ``masks/METHOD``.
        settings: a dataclass with the fields that ``multiflow demo`` takes.
        command: which repeats the run.
        step: called with (phase, done, of how many).
    """
    name, methods, seed = Path(settings.model).name, settings.method, settings.seed
    phases: dict[str, float] = {}
    # 1. the model, held-out scenes, and calibration batches of others
    with timed(phases, "load"):
        model = _open_pair_model(place, settings)
        tokenizer = _open_tokenizer(place, settings.model, model.config.text["vocab_size"])
        side = model.config.image_size
    with timed(phases, "draw"):
        worlds = make_scenes("test", settings.scenes, seed=seed)
        images = [render(scene, side) for scene in worlds]
        captions = [describe(scene, 1)[0] for scene in worlds]
        pixels = torch.from_numpy(to_pixels(images, side))
        source = Source(None, batches=settings.batches, batch_size=settings.batch_size, seed=seed)
        data = open_batches(model, place, source)
    # 2. one calibration pass for all methods that share it, and the masks of every method
    with timed(phases, "calibrate"):
        shared = [find_pruner(method) for method in methods if find_pruner(method).shares_pass]
        needs = dict.fromkeys(name for pruner in shared for name in pruner.statistics)
        stats = calibrate(model, data, statistics=list(needs), progress=step) if needs else None

    def given(method: str) -> Any:
        return stats if find_pruner(method).shares_pass else data

    with timed(phases, "prune"):
        results = {
            method: prune(model, method, settings.sparsity, given(method), seed=seed, progress=step)
            for method in methods
        }
    with timed(phases, "save"):
        for method, result in results.items():
            result.save(folder / MASKS / method)
    # 3. what the dense and every sparse model find
    asked = [(method, sparsity) for method, result in results.items() for sparsity in result.masks]
    found: dict[tuple[str, float], RetrievalResult] = {}
    with timed(phases, "evaluate"):
        for done, (method, sparsity) in enumerate([(DENSE, 0.0), *asked], 1):
            with pruned(model, results.get(method), sparsity):
                texts = [[caption] for caption in captions]
                found[method, sparsity] = evaluate_retrieval(
                    model, pixels, texts, tokenizer, shortlist=settings.shortlist
                )
            step("evaluate", done, len(asked) + 1)
    # 4. what the best model of each sparsity costs
    best = {s: max(methods, key=lambda method: _main(found[method, s])) for s in results[methods[0]].masks}
    with timed(phases, "time"):
        worth = measure_worth(
            model,
            {sparsity: results[method].masks[sparsity] for sparsity, method in best.items()},
            {sparsity: (results[method].weights or {}).get(sparsity) for sparsity, method in best.items()},
            quality={0.0: _main(found[DENSE, 0.0]), **{s: _main(found[method, s]) for s, method in best.items()}},
            by=best,
        )
    # 5. the records
    made = {key: _cell(name, *key, seed, of) for key, of in found.items()}
    cells = tuple(made[key] for key in asked)
    shown = most_telling(cells, chance=100 / settings.scenes)
    models = {DENSE: found[DENSE, 0.0], **{method: found[method, shown] for method in methods}}
    chosen = choose(_examples(models, settings.scenes), settings.examples)
    seen = sorted({i for example in chosen for i in example.scenes})
    times = {method: phases["calibrate"] if result.stats is not None else 0.0 for method, result in results.items()}
    return Demo(
        model=name,
        parameters=sum(p.numel() for p in model.parameters()),
        layout=results[methods[0]].masks[settings.sparsity[0]].layout.layers,
        scenes=settings.scenes,
        shortlist=settings.shortlist,
        calibration=data.seen,
        dense=made[DENSE, 0.0],
        cells=cells,
        prunings=tuple(
            pruning_record(
                *(result, method, name, method, seed),
                calibration=times[method],
                selection=result.seconds,
                pairs=data.seen if find_pruner(method).needs_data else 0,
                peak_memory=0,
            )
            for method, result in results.items()
        ),
        shown=shown,
        examples=tuple(chosen),
        captions={i: captions[i] for i in seen},
        pictures={i: png(images[i]) for i in seen},
        image_size=side,
        phases=phases,
        settings=asdict(settings),
        command=command,
        worth=worth,
        files={p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()},
    )


def _open_pair_model(place: str, settings: Any) -> PairModel:
    model = open_model(place, None, None, settings.device, settings.dtype)
    if not isinstance(model, PairModel):
        raise MultiflowError(
            f"model '{settings.model}' is a {type(model).__name__}; the demo searches with a model that compares "
            "images with texts: give a folder that 'multiflow pretrain' wrote, or leave --model out"
        )
    return model


def _open_tokenizer(place: str, name: str, vocabulary: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside the model: the demo knows no other."""
    try:
        if not model_files(place, OWN_TOKENIZER):
            raise MultiflowError(f"it has no {' or '.join(OWN_TOKENIZER)}")
        return fitting_tokenizer(None, place, vocabulary)
    except MultiflowError as error:
        raise MultiflowError(
            f"model '{name}' comes without a tokenizer that fits: {str(error).split('; ')[0]}; "
            "give a folder that 'multiflow pretrain' wrote, or leave --model out"
        ) from error


@contextmanager
def timed(phases: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - begun


@contextmanager
def pruned(model: nn.Module, result: Result | None, sparsity: float) -> Iterator[None]:
    """Apply a result inside the block; afterwards every weight is what it was, bit for bit."""
    found = result.masks[sparsity].find_weights(model) if result else {}
    weights = [weight for several in found.values() for weight in several]
    originals = [weight.detach().clone() for weight in weights]
    try:
        if result:
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
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return file.getvalue()


def _cell(model: str, method: str, sparsity: float, seed: int, found: RetrievalResult) -> Cell:
    figures = retrieval_figures(found, [1] * len(found.text_ranks))
    return Cell(
        f"{method}-{sparsity:g}",
        *(model, method, sparsity, TASK.name, seed, "demo"),
        score=figures[TASK.main],
        metric=TASK.main,
        figures=dict(figures),
        each=figures.each,
        pruning=None if method == DENSE else method,
        versions={**versions(), "python": platform.python_version()},
    )


def _main(found: RetrievalResult) -> float:
    """The main figure of an evaluation, in percent."""
    return retrieval_figures(found, [1] * len(found.text_ranks))[TASK.main]


def _examples(models: Mapping[str, RetrievalResult], count: int) -> list[Example]:
    firsts = {
        name: list(zip(found.top_texts[:, 0].tolist(), found.top_images[:, 0].tolist(), strict=True))
        for name, found in models.items()
    }
    return [Example(i, tuple(Find(name, *first[i]) for name, first in firsts.items())) for i in range(count)]
