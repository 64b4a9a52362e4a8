"""The page of one pruning: how many zeros, where they went, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import escape

from multiflow.base.files import write_atomically
from multiflow.base.types import short
from multiflow.masks import Masks
from multiflow.pruning.result import Result
from multiflow.report.charts import looks
from multiflow.report.document import Block, Document, Pairs, Section, page, write_document
from multiflow.report.tables import Column, Row, Table, TableCell
from multiflow.report.text import count, millions, nominal, percent, seconds, setting
from multiflow.report.zeros import Spread, collapse_verdict, layer_panels

ROW_HEIGHT, HEADROOM = 210, 330  # pixels of a drawing, and of what stands above the first


@dataclass(frozen=True)
class Plot:
    """Drawings of a result that a notebook shows, and that can be saved as a page.

    Args:
        html: a whole page, which needs nothing from elsewhere.
        height: of the page in a notebook, in pixels.
    """

    html: str
    height: int

    def __repr__(self) -> str:
        return f"Plot({len(self.html):,} characters of HTML; show it in a notebook, or .save('zeros.html'))"

    def _repr_html_(self) -> str:
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<iframe srcdoc="{escape(self.html)}" style="{style}"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write the page; return its path."""
        return write_atomically(Path(path), self.html)


def plot(result: Result) -> Plot:
    """Draw the share of zeros in every layer, a drawing a sparsity."""
    document = _document(result)
    alone = Document(document.title, document.headline, document.lead, [], document.sections[:1], document.looks)
    return Plot(page(alone), HEADROOM + ROW_HEIGHT * len(result.masks))


def write(result: Result, path: Path) -> Path:
    """Write the page of a result as HTML, or as Markdown where the name of the file ends in ``.md``."""
    return write_document(_document(result), path)


def spread(masks: Masks, pruner: str, model: str, sparsity: float) -> Spread:
    """Say where the zeros of masks went.

    Args:
        masks: of one pruning at one sparsity.
        pruner: its name.
        model: its name.
        sparsity: as it was asked for.
    """
    return Spread(model, pruner, sparsity, (), masks.layout.layers, masks.sparsities(), masks.group_sparsities())


def _document(result: Result) -> Document:
    how = result.settings
    pruner, model = str(how.get("method", "pruner")), str(how.get("model") or "the model")
    found = [spread(masks, pruner, model, asked) for asked, masks in result.masks.items()]
    layout = next(iter(result.masks.values())).layout
    asked = ", ".join(nominal(sparsity) for sparsity in result.masks)
    styles = looks([pruner])
    groups: list[Block] = [collapse_verdict(found), *layer_panels(found, styles)]
    numbers = [
        Pairs(
            [(key.replace("_", " "), setting(value)) for key, value in how.items() if not isinstance(value, Mapping)]
        ),
        Pairs([(name, seconds(value)) for name, value in result.timings.items()], "Seconds of each phase"),
    ]
    return Document(
        title=f"{pruner} on {model}",
        headline=f"{pruner} drops {asked} of {count(len(layout), 'layer')}.",
        lead=f"{millions(layout.size)} prunable weights in {count(len(layout.groups), 'group')}; nothing was changed "
        "in the model: masks say which weights go.",
        facts=[
            (nominal(sparsity), f"{percent(masks.sparsity, 2)} achieved") for sparsity, masks in result.masks.items()
        ],
        sections=[
            Section("zeros", "Where the zeros went", [*groups, _table(result)]),
            Section("making", "How it was made", numbers),
        ],
        looks=styles,
    )


def _table(result: Result) -> Table:
    groups = list(dict.fromkeys(group for masks in result.masks.values() for group in masks.layout.groups))
    columns = [Column("asked"), *(Column(name, class_="number") for name in ("zeros", *groups))]
    rows = []
    for asked, masks in result.masks.items():
        values = [masks.sparsity, *(masks.group_sparsities()[group] for group in groups)]
        rows.append(Row([TableCell(short(asked)), *(TableCell(percent(v, 2), v) for v in values)]))
    return Table(columns, rows, "Share of zeros by group")
