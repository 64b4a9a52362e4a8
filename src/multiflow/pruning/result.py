"""What pruning gives: masks for every sparsity, and how they came about."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from multiflow.base.artifacts import check_tensors, read_facts, read_tensors, write_facts, write_tensors
from multiflow.base.errors import MultiflowError
from multiflow.base.runs import fresh_folder
from multiflow.base.types import Layout
from multiflow.calibration import Doubling, Stats, is_stable
from multiflow.masks import Masks
from multiflow.methods import Pruner

RESULT_FILE = "result.json"
RUN_FILE = "run.json"  # the settings, in the folder of a run that has not ended
MOST_BLOCK = 64  # M of the N:M patterns whose sparsities are written short
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Value = TypeVar("Value")


class Weights(Mapping[str, Tensor]):
    """Layer name -> its weight, detached, in float32 or better, converted when looked up."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters: dict[str, nn.Parameter] = {name: modules[name].weight for name in layout}

    def __getitem__(self, name: str) -> Tensor:
        weight = self.parameters[name].detach()
        return weight.to(torch.promote_types(weight.dtype, torch.float32))

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


class Scores(Mapping[str, Tensor]):
    """Layer name -> the scores of its weights ``(out, in)``, computed when looked up.

    Nothing is stored: the scores of a large model would take as much memory as the model. They come from the weights as
    they were; once those were written to in place (masks applied, an optimizer's step), looking a score up is an error.
    What is done through ``weight.data`` is the exception: torch does not count it, and the scores are those of the
    weights as they are by then.
    """

    def __init__(
        self, pruner: Pruner, weights: Weights, stats: Stats | None, hyper: Mapping[str, Any], seed: int
    ) -> None:
        self._pruner, self._weights, self._stats, self._hyper, self._seed = pruner, weights, stats, dict(hyper), seed
        self._versions = {name: weight._version for name, weight in weights.parameters.items()}

    def __getitem__(self, name: str) -> Tensor:
        if self._weights.parameters[name]._version != self._versions[name]:
            raise MultiflowError(
                f"the weight of layer '{name}' has changed since it was pruned, so its scores cannot be computed any "
                "more; read result.scores before applying masks or training"
            )
        weight = self._weights[name]
        scores = self._pruner.function(weight, **self._provided(name, weight), **self._hyper)
        if self._weights.parameters[name]._version != self._versions[name]:
            raise MultiflowError(
                f"pruner '{self._pruner.name}' changed the weight of layer '{name}' in place; compute its scores from "
                "a copy (weight.abs(), not weight.abs_()), and load the model anew"
            )
        return check_scores(self._pruner, name, scores, tuple(weight.shape))

    def _provided(self, name: str, weight: Tensor) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for need in self._pruner.needs:
            if need == "generator":  # the generator looks at 32 bits of its seed, no more
                given[need] = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
            else:
                assert self._stats is not None
                given[need] = self._stats.get_layer(need, name).to(weight)
        return given

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def check_scores(pruner: Pruner, layer: str, scores: Any, shape: tuple[int, ...], *, some_gone: bool = False) -> Tensor:
    """Return the scores of a layer in float32 or better; those that cannot be ranked are an error that names it.

    With ``some_gone`` a score may be -Inf: that of a weight that is gone already.
    """
    if not isinstance(scores, Tensor) or scores.shape != shape:
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise MultiflowError(f"pruner '{pruner.name}' gave scores {given} for layer '{layer}'; expected {shape}")
    scores = scores.detach().to(torch.promote_types(scores.dtype, torch.float32))
    if some_gone:
        fine = not scores.numel() or bool(scores.max() < torch.inf)  # false for NaN as well
    else:
        fine = bool(scores.sum().isfinite() or scores.isfinite().all())
    if not fine:
        raise MultiflowError(
            f"pruner '{pruner.name}' gave NaN or Inf scores for layer '{layer}'; check its weights and data"
        )
    return scores


@dataclass(frozen=True)
class Result:
    """Masks for every sparsity, and how they came about.

    Args:
        masks: sparsity as it was given -> `Masks`.
        weights: sparsity -> layer name -> changed weights, for methods that change kept weights; else None.
        scores: layer name -> scores, computed when looked up; None for methods whose scores are others at every
            sparsity: those that prune in steps, or learn.
        stats: the statistics that the method used, or None for a data-free one. Other methods can use them again:
            ``mf.prune(model, "wanda", batches=result.stats)``.
        settings: method, hyper-parameters, pattern, allocation, seed, versions.
        timings: seconds of each phase.
        curve: of a run with ``until_stable``, how far the masks agreed at each doubling of the data; else None.
    """

    masks: Mapping[float, Masks]
    weights: Mapping[float, Mapping[str, Tensor]] | None
    scores: Mapping[str, Tensor] | None = field(repr=False)
    stats: Stats | None = field(repr=False)
    settings: Mapping[str, Any]
    timings: Mapping[str, float]
    curve: tuple[Doubling, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", BySparsity(self.masks))
        if self.weights is not None:
            object.__setattr__(self, "weights", BySparsity(self.weights))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the whole run."""
        return sum(self.timings.values())

    @property
    def stable(self) -> bool | None:
        """Whether the masks were stable when calibration ended; None without ``until_stable``."""
        return None if self.curve is None else is_stable(self.curve, self.settings["until_stable"])

    def apply_(self, model: nn.Module, sparsity: float) -> Masks:
        """Zero the dropped weights of the model in place, write changed weights if there are any; return the masks."""
        masks = self.masks[sparsity]
        return masks.apply_(model, None if self.weights is None else self.weights[sparsity])

    def summary(self) -> dict[str, Any]:
        """Settings, seconds and achieved sparsities, as plain values."""
        return {
            "settings": dict(self.settings),
            "seconds": self.seconds,
            "timings": dict(self.timings),
            "masks": {
                short(s): {"file": mask_file(s), "sparsity": m.sparsity, "groups": m.group_sparsities()}
                for s, m in self.masks.items()
            },
            **({} if self.curve is None else {"stable": self.stable, "curve": list(map(_plain, self.curve))}),
        }

    def save(self, folder: str | Path) -> Path:
        """Write one mask file a sparsity and ``result.json`` into a new or empty folder; return the folder."""
        folder = fresh_folder(folder, RESULT_FILE)
        self.save_tensors(folder)
        write_facts(folder / RESULT_FILE, self.summary())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read what `save` or ``multiflow prune`` wrote: masks, changed weights, settings and seconds, nothing else.

        Raises:
            MultiflowError: the folder holds no result, or one of its files is missing or damaged.

        >>> mf.Result.load("runs/lobs").apply_(model, 0.75)     # doctest: +SKIP
        """
        path = Path(folder) / RESULT_FILE
        fix = "give a folder that result.save or 'multiflow prune' wrote"
        said = read_facts(path, "result", fix)
        try:
            files = [Path(folder) / entry["file"] for entry in said["masks"].values()]
            settings, timings = dict(said["settings"]), {name: float(s) for name, s in said["timings"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MultiflowError(f"'{path}' holds no result that can be read ({error!r}); {fix}") from error
        masks: dict[float, Masks] = {}
        changed: dict[float, Mapping[str, Tensor]] = {}
        for file in files:
            found = Masks.load(file)
            if not isinstance(sparsity := found.settings.get("sparsity"), int | float):
                raise MultiflowError(f"'{file}' does not say at which sparsity its masks are; {fix}")
            masks[sparsity] = found
            if (weights := changed_weights(file, found)) is not None:
                changed[sparsity] = weights
        return cls(masks, changed or None, None, None, settings, timings)

    def save_tensors(self, folder: Path) -> None:
        """Write the masks into a folder, and beside them the changed weights if there are any."""
        for sparsity, masks in self.masks.items():
            if self.weights is not None:
                header = {"method": self.settings.get("method"), "sparsity": sparsity}
                write_tensors(folder / weights_file(sparsity), self.weights[sparsity], header)
            masks.save(folder / mask_file(sparsity))


class BySparsity(dict[float, Value]):
    """Sparsity -> value; one that was not asked for is an error that lists those there are."""

    def __missing__(self, sparsity: Any) -> Value:
        there = ", ".join(map(short, self))
        raise MultiflowError(f"there are no masks at sparsity {sparsity!r}; there are: {there}")


def _plain(point: Doubling) -> dict[str, Any]:
    """Return a point of the curve as JSON knows it."""
    return {**asdict(point), "agreement": {short(s): share for s, share in point.agreement.items()}}


def changed_weights(mask_path: Path, masks: Masks) -> dict[str, Tensor] | None:
    """Read the changed weights that lie beside a mask file; None for methods that change none.

    Raises:
        MultiflowError: the method changes weights, and the file is not there or holds other layers.
    """
    if not masks.settings.get("changes_weights"):
        return None
    path = mask_path.with_name(weights_file(masks.settings["sparsity"]))
    if not path.is_file():
        raise MultiflowError(
            f"masks of '{masks.settings['method']}' belong to changed weights, which cannot be read from '{path}' "
            "(there is no such file); keep the two files side by side"
        )
    weights, _ = read_tensors(path, "changed weights", "prune again")
    check_tensors(path, weights, {name: (layer.shape, FLOATS) for name, layer in masks.layout.items()}, "prune again")
    return weights


def weights_file(sparsity: float) -> str:
    """Name the file of the changed weights at a sparsity, beside that of the masks."""
    return f"weights-{short(sparsity)}.safetensors"


def mask_file(sparsity: float) -> str:
    """Name the file of the masks at a sparsity.

    >>> mask_file(0.63)
    'mask-0.63.safetensors'
    """
    return f"mask-{short(sparsity)}.safetensors"


def short(sparsity: float) -> str:
    """Write a sparsity in as few digits as say it exactly, and that of an N:M pattern in six at most.

    >>> short(0.63), short(0.0), short(1 - 1 / 3), short(0.1234567)
    ('0.63', '0', '0.666667', '0.1234567')
    """
    digits, ratio = f"{sparsity:g}", Fraction(sparsity).limit_denominator(MOST_BLOCK)
    return digits if float(digits) == sparsity or abs(ratio - sparsity) < 1e-15 else repr(float(sparsity))


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what a result is."""
    found = {}
    for name in ("multiflow", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
