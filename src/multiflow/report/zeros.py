"""Where the zeros went: shares of zeros of layers and groups, in words, tables and drawings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from multiflow.base.types import Layer
from multiflow.bench.records import Pruning
from multiflow.report.bars import layer_bars
from multiflow.report.charts import COLLAPSED, Look
from multiflow.report.document import Drawing, Drawings, Mark, Verdict
from multiflow.report.text import count, listed, nominal, percent

EVEN = 0.01
"""Groups whose shares of zeros differ by less are treated alike."""
MANY = 5
"""So many pruners are named."""


@dataclass(frozen=True)
class Spread:
    """Where the zeros of one pruner went at one sparsity, mean over the prunings of all seeds."""

    model: str  # name in the grid
    pruner: str  # name in the grid
    sparsity: float  # asked for
    seeds: tuple[int, ...]  # of the prunings
    layout: tuple[Layer, ...]  # the layers; their shapes say nothing but their sizes
    layers: Mapping[str, float]  # layer name -> share of zeros
    groups: Mapping[str, float]  # group -> share of zeros

    @property
    def achieved(self) -> float:
        return sum(self.layers[m.name] * m.size for m in self.layout) / sum(m.size for m in self.layout)

    @property
    def gone_groups(self) -> list[str]:
        return [name for name, share in self.groups.items() if share >= COLLAPSED]

    @property
    def gone_layers(self) -> list[str]:
        return [name for name, share in self.layers.items() if share >= COLLAPSED]


def spreads(prunings: Iterable[Pruning], models: Sequence[str], pruners: Sequence[str]) -> list[Spread]:
    """Return where the zeros went, by model and pruner in the orders given, then by sparsity."""
    found: dict[tuple[str, str, float], list[Pruning]] = {}
    for pruning in prunings:
        for sparsity in pruning.zeros:
            found.setdefault((pruning.model, pruning.pruner, sparsity), []).append(pruning)
    order = {name: i for i, name in enumerate((*models, *pruners))}
    keys = sorted(found, key=lambda key: (order.get(key[0], 0), order.get(key[1], len(order)), key[2]))
    return [_spread(*key, found[key]) for key in keys]


def _spread(model: str, pruner: str, sparsity: float, prunings: Sequence[Pruning]) -> Spread:
    """Prunings of one model have one layout; the last one's counts where another version of the model is among them."""
    layers = prunings[-1].layers
    same = [pruning for pruning in prunings if list(pruning.layers) == list(layers)]
    zeros = [sum(counts) / len(same) for counts in zip(*(p.zeros[sparsity] for p in same), strict=True)]
    layout = tuple(Layer(name, (1, size), group) for name, group, size in layers)
    shares = {layer.name: count / layer.size for layer, count in zip(layout, zeros, strict=True)}
    by_group: dict[str, list[Layer]] = {}
    for layer in layout:
        by_group.setdefault(layer.group, []).append(layer)
    of_groups = {
        group: sum(shares[m.name] * m.size for m in these) / sum(m.size for m in these)
        for group, these in by_group.items()
    }
    seeds = tuple(sorted({pruning.seed for pruning in same}))
    return Spread(model, pruner, sparsity, seeds, layout, shares, of_groups)


def groups(found: Sequence[Spread]) -> list[str]:
    return list(dict.fromkeys(group for spread in found for group in spread.groups))


def collapsed(found: Sequence[Spread]) -> list[tuple[str, str, str]]:
    """Return (model, pruner, what collapsed) for every pruner of which something has, in words."""
    said: dict[tuple[str, str], list[str]] = {}
    for spread in found:
        layers = spread.gone_layers
        if not layers and not spread.gone_groups:
            continue
        whole = f"all of {' and '.join(spread.gone_groups)}; " if spread.gone_groups else ""
        named = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        text = (
            f"{whole}{count(len(layers), 'layer')} of {len(spread.layout)} ({named})" if layers else whole.strip("; ")
        )
        said.setdefault((spread.model, spread.pruner), []).append(f"at {nominal(spread.sparsity)} {text}")
    return [(*key, "; ".join(texts)) for key, texts in said.items()]


def uneven(found: Sequence[Spread]) -> list[str]:
    """Return for each model of several groups who treats them unlike, the most unlike first, at the most zeros."""
    said = []
    for model in dict.fromkeys(spread.model for spread in found):
        here = [spread for spread in found if spread.model == model and len(spread.groups) > 1]
        if not here:
            continue
        most = max(spread.sparsity for spread in here)
        at = sorted((spread for spread in here if spread.sparsity == most), key=lambda spread: -_gap(spread))
        unlike = [spread for spread in at if _gap(spread) >= EVEN]
        shown = [f"{one.pruner} ({_shares(one)})" for one in unlike[:MANY]]
        more = [f"{len(unlike) - MANY} more"] if len(unlike) > MANY else []
        text = f"On {model} at {nominal(most)} zeros, {len(at) - len(unlike)} of {len(at)} pruners spread"
        text += f" the zeros over the groups within {100 * EVEN:.0f} point of each other"
        said.append(f"{text}; unevenly {listed([*shown, *more])}." if unlike else f"{text}.")
    return said


def _gap(spread: Spread) -> float:
    return max(spread.groups.values()) - min(spread.groups.values())


def _shares(spread: Spread) -> str:
    return ", ".join(f"{group} {percent(share, 1)}" for group, share in spread.groups.items())


def collapse_verdict(found: Sequence[Spread]) -> Verdict:
    """Return the box that says what collapsed, or that nothing has."""
    several = len({spread.model for spread in found}) > 1
    items = [f"{pruner}{f' on {model}' * several} {what}" for model, pruner, what in collapsed(found)]
    if items:
        return Verdict("bad", "Collapsed", items=items)
    return Verdict(
        "good", "Nothing collapsed:", f"every layer keeps more than {percent(1 - COLLAPSED)} of its weights."
    )


def layer_panels(
    found: Sequence[Spread], looks: Mapping[str, Look], sparsities: Sequence[float] | None = None
) -> list[Drawings]:
    """Return the bars of all layers: a row of drawings a pruner, a column a sparsity, whose drawing may be missing.

    Args:
        found: what is drawn.
        looks: of the pruners.
        sparsities: the columns; None = those of ``found``.
    """
    columns = sorted({spread.sparsity for spread in found}) if sparsities is None else sparsities
    rows: dict[str, dict[float, Drawing]] = {}
    for spread in found:
        rows.setdefault(spread.pruner, {})[spread.sparsity] = _panel(spread, looks[spread.pruner])
    empty = Drawing(Markup())
    return [Drawings([row.get(s, empty) for s in columns], "panels", pruner) for pruner, row in rows.items()]


def _panel(spread: Spread, look: Look) -> Drawing:
    title = f"{spread.pruner} on {spread.model} at {nominal(spread.sparsity)}: share of zeros in each layer"
    bars = layer_bars(title, spread.layout, spread.layers, spread.groups, spread.sparsity, look)
    gone = len(spread.gone_layers)
    return Drawing(bars, nominal(spread.sparsity), Mark(f"{count(gone, 'layer')} collapsed", "gone") if gone else "")
