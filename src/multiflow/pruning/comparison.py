"""Several pruners on one model and its data: how alike their masks are, and how true their models stay."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import nn

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError
from multiflow.base.registry import resolve
from multiflow.base.steps import Watch, watched
from multiflow.calibration import Stats
from multiflow.calibration.memory import peak_memory, reset_peak_memory
from multiflow.masks import compare, total
from multiflow.pruning.fidelity import Fidelity, measure_fidelity
from multiflow.pruning.plan import find_adapter, request
from multiflow.pruning.result import Result
from multiflow.pruning.run import calibrate, prune
from multiflow.pruning.unused import spare_unused


@dataclass(frozen=True)
class Compared:
    """One pruner in a comparison."""

    method: str
    result: Result
    fidelity: Mapping[float, Fidelity]  # sparsity -> how close its model stays to the dense one
    seconds: float  # to prune at all sparsities, without the calibration that is shared
    peak_memory: int  # bytes that the process held at most meanwhile


@dataclass(frozen=True)
class Comparison:
    """Several pruners on one model."""

    model: str
    sparsities: tuple[float, ...]
    pruners: tuple[Compared, ...]
    agreement: Mapping[float, Mapping[tuple[str, str], float]]  # sparsity -> two pruners -> overlap of what they keep
    calibration: float  # seconds of the shared calibration

    def __repr__(self) -> str:
        names = ", ".join(one.method for one in self.pruners)
        return f"Comparison({names} on {self.model} at {', '.join(map(str, self.sparsities))})"

    def _repr_html_(self) -> str:
        return str(resolve("multiflow.report.compare:notebook_table")(self))

    def report(self, path: str | Path) -> Path:
        """Write one page on what was compared: a table, the error of every block, how alike the masks are.

        Args:
            path: of an HTML file, or a Markdown file where it ends in ``.md``; it is returned.

        Raises:
            MultiflowError: the name ends otherwise, or cannot be written.
        """
        written: Path = resolve("multiflow.report.compare:write_comparison")(self, Path(path))
        return written


@watched
def compare_pruners(
    model: nn.Module,
    methods: Sequence[str],
    sparsity: float | Sequence[float] | None = None,
    batches: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    *,
    adapter: Adapter | None = None,
    seed: int = 0,
    progress: Watch = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Comparison:
    """Prune a model by several methods, and measure without labels how close each stays to the dense model.

    Args:
        model: as for `prune`; it is not changed.
        methods: names of `list_pruners`.
        sparsity: as for `prune`.
        batches: to calibrate on; all methods that need the same statistic share one pass.
        held_out: other batches, on which the sparse models are compared with the dense one; None takes ``batches``.
        adapter: as for `prune`.
        seed: of whatever is random.
        progress: ``f(what, done, total)``, called as the work goes on; None shows bars where a person looks (a
            terminal, a notebook), False nothing.
        options: method -> keywords of `prune` for it, such as ``pattern`` and hyper-parameters.

    Raises:
        MultiflowError: as of `prune`; fewer than one method, or one named twice.

    >>> mf.compare_pruners(model, ["multiflow", "wanda"], 0.75, batches)       # doctest: +SKIP
    """
    # 1. everything is checked before anything is computed
    options = options or {}
    if not methods or len(set(methods)) < len(methods):
        raise MultiflowError(f"methods {list(methods)} were given; expected one or several names, each once")
    for name in options:
        if name not in methods:
            raise MultiflowError(f"options for '{name}' were given, which is not among the methods {list(methods)}")
    asked = {name: request(name, sparsity, **_request_options(options.get(name, {}))) for name in methods}
    needy = [name for name, one in asked.items() if one.needs_data]
    if batches is None and (needy or held_out is None):
        what = f"method '{needy[0]}' needs" if needy else "comparing needs"
        raise MultiflowError(f"{what} calibration data and none were given; give batches")
    adapter, batches = spare_unused(model, find_adapter(model, adapter), batches)

    # 2. one calibration for all that can share one
    shared = list(dict.fromkeys(name for one in asked.values() for name in one.statistics))
    stats, began = None, time.monotonic()
    if shared:
        assert batches is not None
        stats = calibrate(model, batches, adapter=adapter, statistics=shared, progress=progress)
    calibration = time.monotonic() - began

    # 3. every method prunes
    found: list[tuple[str, Result, float, int]] = []
    for name, one in asked.items():
        given: Iterable[Any] | Stats | None = batches if one.needs_data else None
        if one.statistics and stats is not None:
            given = stats
        reset_peak_memory()
        began = time.monotonic()
        keywords = {"adapter": adapter, "seed": seed, "progress": progress, **options.get(name, {})}
        result = prune(model, name, one.sparsities, given, **keywords)
        found.append((name, result, time.monotonic() - began, peak_memory()))

    # 4. what is left of the model
    variants = [(r.masks[s], None if r.weights is None else r.weights[s]) for _, r, *_ in found for s in r.masks]
    judged = iter(measure_fidelity(model, variants, batches if held_out is None else held_out, adapter))  # type: ignore[arg-type]
    pruners = tuple(
        Compared(name, result, {s: next(judged) for s in result.masks}, seconds, memory)
        for name, result, seconds, memory in found
    )
    sparsities = tuple(dict.fromkeys(s for one in asked.values() for s in one.sparsities))
    return Comparison(type(model).__name__, sparsities, pruners, _agreement(pruners, sparsities), calibration)


def _request_options(keywords: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: keywords[name] for name in ("pattern", "allocation", "until_stable") if name in keywords}
    return {**own, "hyper": {name: value for name, value in keywords.items() if name not in own}}


def _agreement(pruners: Sequence[Compared], sparsities: Sequence[float]) -> dict[float, dict[tuple[str, str], float]]:
    return {
        sparsity: {
            (a.method, b.method): total(list(compare(of_a[sparsity], of_b[sparsity]).values())).overlap
            for a, b in combinations(pruners, 2)
            if sparsity in (of_a := a.result.masks) and sparsity in (of_b := b.result.masks)
        }
        for sparsity in sparsities
    }
