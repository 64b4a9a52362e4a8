"""What pruning gives: masks for every sparsity, and how they came about."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from multiflow.base.artifacts import (
    check_tensors,
    checksum_of,
    read_facts,
    read_tensors,
    write_facts,
    write_tensors,
)
from multiflow.base.display import bar, html_table, percent
from multiflow.base.errors import MultiflowError, counted
from multiflow.base.files import is_regular, write_atomically
from multiflow.base.hub import fetch, publish
from multiflow.base.registry import resolve
from multiflow.base.runs import fresh_folder
from multiflow.base.types import Layout, short
from multiflow.calibration import Doubling, Stats, is_stable
from multiflow.masks import Masks
from multiflow.masks.cards import mask_card
from multiflow.masks.files import mask_file
from multiflow.masks.sharing import CARD, RUN_FILES

RESULT_FILE = "result.json"
RUN_FILE = "run.json"  # the settings, in the folder of a run that has not ended
VOUCHED = "weights_checksum"  # in the settings of masks, of the file of changed weights beside them
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Result:
    """Masks for every sparsity, and how they came about.

    Args:
        masks: sparsity as it was given -> `Masks`.
        weights: sparsity -> layer name -> changed weights, for methods that change kept weights; else None. Of a model
            that was recovered also name of a parameter -> its values, for biases, norms and scales that were trained.
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

    def __repr__(self) -> str:
        method = self.settings.get("method", "?")
        there = ", ".join(map(short, self.masks))
        changed = "" if self.weights is None else ", with changed weights"
        return f"Result({method} at sparsity {there}: {layers_text(self.masks)}{changed}, {self.seconds:.1f} s)"

    def _repr_html_(self) -> str:
        groups = list(dict.fromkeys(group for masks in self.masks.values() for group in masks.layout.groups))
        rows = [
            [short(asked), percent(masks.sparsity), *(bar(masks.group_sparsities()[group]) for group in groups)]
            for asked, masks in self.masks.items()
        ]
        return html_table(repr(self), ["asked", "zeros", *groups], rows)

    def plot(self) -> Any:
        """Draw the share of zeros in every layer, a drawing a sparsity; a notebook shows it.

        >>> result.plot().save("zeros.html")     # doctest: +SKIP
        """
        return resolve("multiflow.report.pruned:plot")(self)

    def report(self, path: str | Path) -> Path:
        """Write one page on what was pruned: zeros by group and layer, settings, seconds; return its path.

        Args:
            path: of an HTML file, or a Markdown file where it ends in ``.md``.
        """
        report: Path = resolve("multiflow.report.pruned:write")(self, Path(path))
        return report

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

    def save(self, folder: str | Path, **facts: Any) -> Path:
        """Write one mask file a sparsity and at the end ``result.json``; return the folder.

        Args:
            folder: a new or empty folder, or that of the run that is going on, see `multiflow.base.runs.run_folder`.
            **facts: what else ``result.json`` is to say, as plain values.
        """
        folder = Path(folder)
        if not (folder / RUN_FILE).is_file():
            fresh_folder(folder, RESULT_FILE)
        try:
            self.save_tensors(folder)
            write_facts(folder / RESULT_FILE, {**self.summary(), **facts})
        except BaseException:
            for name in [file(sparsity) for sparsity in self.masks for file in (mask_file, weights_file)]:
                with suppress(OSError):
                    (folder / name).unlink()
            raise
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
            files = {Path(folder) / entry["file"]: s for s, entry in said["masks"].items()}
            settings, timings = dict(said["settings"]), {name: float(s) for name, s in said["timings"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MultiflowError(f"'{path}' holds no result that can be read ({error!r}); {fix}") from error
        masks: dict[float, Masks] = {}
        changed: dict[float, Mapping[str, Tensor]] = {}
        for file, asked in files.items():
            found = Masks.load(file)
            if not isinstance(sparsity := found.settings.get("sparsity"), int | float):
                raise MultiflowError(f"'{file}' does not say at which sparsity its masks are; {fix}")
            if short(sparsity) != asked:
                raise MultiflowError(f"'{file}' holds masks at sparsity {short(sparsity)}, not at {asked}; {fix}")
            masks[sparsity] = found
            if (weights := changed_weights(file, found)) is not None:
                changed[sparsity] = weights
        return cls(masks, changed or None, None, None, settings, timings)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None, token: str | None = None) -> Result:
        """Read a result from a repository on the Hugging Face Hub or from a folder, as `load` does.

        Args:
            source: ``user/name`` or a folder.
            revision: of the repository: a branch, tag or commit.
            token: for a private repository.
        """
        folder = Path(source).expanduser()
        return cls.load(folder if folder.is_dir() else fetch(str(source), RUN_FILES, revision, token))

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None, message: str | None = None
    ) -> str:
        """Upload masks, changed weights and settings to the Hugging Face Hub, with a card; return the address.

        Args:
            repository: ``user/name``; one that is not there is made.
            private: whether a repository that is made is private.
            token: with the right to write; None = the one that the Hub's client has stored.
            message: of the commit.

        Raises:
            MultiflowError: the Hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = self.save(name)
            files = sorted(path.name for path in folder.iterdir())
            write_atomically(folder / CARD, mask_card(self.masks, repository, files))
            return publish(folder, repository, private, token, message or f"Pruned by {self.settings.get('method')}")

    def save_tensors(self, folder: Path) -> None:
        """Write the masks into a folder, and beside them the changed weights if there are any, for which they vouch."""
        for sparsity, masks in self.masks.items():
            if self.weights is not None:
                others = [name for name in self.weights[sparsity] if name not in masks.layout]
                header = {"method": self.settings.get("method"), "sparsity": sparsity}
                header |= {"parameters": others} if others else {}
                written = write_tensors(folder / weights_file(sparsity), self.weights[sparsity], header)
                masks = replace(masks, settings={**masks.settings, VOUCHED: checksum_of(written)})
            masks.save(folder / mask_file(sparsity))


def layers_text(masks: Mapping[float, Masks]) -> str:
    """Count the layers and weights that masks are for."""
    layout = next(iter(masks.values())).layout if masks else Layout(())
    return f"{counted(len(layout), 'layer')}, {counted(layout.size, 'weight')}"


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
    sparsity = masks.settings["sparsity"]
    path = mask_path.with_name(weights_file(sparsity))
    if not is_regular(path):
        raise MultiflowError(
            f"masks of '{masks.settings.get('method')}' belong to changed weights, which cannot be read from '{path}' "
            "(there is no such file); keep the two files side by side"
        )
    weights, header = read_tensors(path, "changed weights", "prune again")
    if header.get("checksum") != (wanted := masks.settings.get(VOUCHED, header.get("checksum"))):
        raise MultiflowError(
            f"'{path}' does not hold the changed weights that '{mask_path}' was written with (their checksum is "
            f"{header.get('checksum', 'missing')}, not {wanted}); copy both files again, or prune again"
        )
    if (found := header.get("sparsity", sparsity)) != sparsity:
        raise MultiflowError(f"'{path}' holds the changed weights of sparsity {found}, not {sparsity}; prune again")
    like = {name: (layer.shape, FLOATS) for name, layer in masks.layout.items()}
    others = header.get("parameters", [])
    if not isinstance(others, list) or not all(isinstance(name, str) for name in others) or set(others) & set(like):
        raise MultiflowError(f"'{path}' lists no names of parameters but {others!r}; prune again")
    like |= {name: (tuple(weights[name].shape), FLOATS) for name in others if name in weights}
    like |= {name: ((), FLOATS) for name in others if name not in weights}
    check_tensors(path, weights, like, "prune again")
    return weights


def weights_file(sparsity: float) -> str:
    """Name the file of the changed weights at a sparsity, beside that of the masks."""
    return f"weights-{short(sparsity)}.safetensors"
