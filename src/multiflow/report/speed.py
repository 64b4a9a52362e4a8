"""The page of a measurement of speed: one table, and what to use in one sentence."""

from __future__ import annotations

from multiflow.formats.figures import SpeedTable
from multiflow.report.document import Document, Items, Section
from multiflow.report.tables import Column, Row, Table, TableCell

LEAD = (
    "All forms ran in turns on this machine; a time is the median of the turns, with half the distance of the "
    "quartiles where that is above a tenth of it. Bold: the fastest, where it beats dense by more than the spread."
)


def speed_document(table: SpeedTable) -> Document:
    """Lay a table of speeds out as a page."""
    head, lines = table.rows()
    columns = [Column(head[0]), *(Column(title, class_="number") for title in head[1:])]
    fixed = len(head) - len(table.columns)
    rows = []
    for form, line in zip(table.forms, lines, strict=True):
        cells = [TableCell(form, key=form)]
        for at, text in enumerate(line[1:], start=1):
            key = None if text == "-" else float(text.split()[0])
            best = at >= fixed and table.best(*table.columns[at - fixed]) == form
            cells.append(TableCell(text, key=key, look="best" if best and key is not None else None))
        rows.append(Row(cells, class_="dense" if form == table.baseline else None))
    facts = [(f"{value}", name) for name, value in table.machine.items()]
    blocks: list[Table | Items] = [Table(columns, rows, caption=f"{table.model} on this machine", id="speed")]
    if table.left_out:
        blocks.append(Items([f"{form}: {why}" for form, why in table.left_out.items()]))
    sections = [Section("speed", "Bytes and milliseconds", blocks, LEAD)]
    return Document(f"Speed of {table.model}", table.sentence, "What zeros buy on this machine.", facts, sections)
