"""Writes the parts of the documentation that come from registries and figures: ``python docs/generate.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from multiflow.calibration import STATISTICS
from multiflow.methods import PRUNERS
from multiflow.methods.budgets import ALLOCATIONS

FOLDER = Path(__file__).parent


def methods() -> str:
    """Return the text of ``methods.md``."""
    rows = []
    for pruner in PRUNERS.values():
        hyper = ", ".join(f"`{name}={value}`" for name, value in pruner.hyper.items()) or "-"
        data = ", ".join(f"`{name}`" if name in STATISTICS else name for name in pruner.looks_at) or "no data"
        rows.append(
            f"| `{pruner.name}` | {pruner.summary} | {data} | {pruner.allocation} | {pruner.pattern} | {hyper} |"
        )
    sections, seen = [], set()
    for pruner in PRUNERS.values():
        module = inspect.getmodule(pruner.function)
        if module is not None and module.__name__ not in seen:
            seen.add(module.__name__)
            sections.append(f"## {pruner.name}\n```text\n{inspect.getdoc(module)}\n```")
    for name, allocation in ALLOCATIONS.items():
        sections.append(f"## Allocation: {name}\n{inspect.getdoc(allocation.function)}")
    table = "\n".join(rows)
    return (
        "# Methods\n\nGenerated from the registries by `make docs`.\n\n"
        "| name | what goes | needs | allocation | pattern | hyper-parameters |\n|---|---|---|---|---|---|\n"
        f"{table}\n\n" + "\n\n".join(sections) + "\n"
    )


def filled(page: str, name: str, text: str) -> str:
    """Return a page with a part between its marks."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    return re.sub(rf"{begin}.*?{end}", lambda _: f"{begin}{text}\n{end}", page, flags=re.S)


if __name__ == "__main__":
    (FOLDER / "methods.md").write_text(methods())
    import model_tables
    import payoff_tables

    for _tables in (payoff_tables, model_tables):
        for _name, _text in _tables.parts().items():
            _page = _tables.PLACES[_name]
            _page.write_text(filled(_page.read_text(), _name, _text))
