"""The report as Markdown: the same words and figures as the page, without its charts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from multiflow.report.bench.cost import Kept, costs, kept
from multiflow.report.bench.doubts import cell_said, doubts, failures, gaps, incomplete
from multiflow.report.bench.layers import collapsed, groups, spreads, uneven
from multiflow.report.bench.learning import gained, lessons, verdict
from multiflow.report.bench.making import facts, shared_settings, terms, versions
from multiflow.report.bench.tables import columns, rows, tiers_said
from multiflow.report.bench.values import Bench, Entry, Overall
from multiflow.report.bench.words import (
    difference_said,
    duel,
    headline,
    leaders,
    losses,
    place_said,
    scope,
    seeds_of,
    standings,
    verdicts,
)
from multiflow.report.html import nominal, number, percent, size


def markdown(bench: Bench) -> str:
    """Return ``report.md``."""
    parts = [
        f"# {bench.title}",
        *_first(bench),
        "## Summary",
        headline(bench),
        scope(bench),
        *_standings(bench),
        _list(verdicts(bench)),
        *_leaders(bench),
        "## Figures",
        "Mean ± standard deviation over seeds. **Bold**: best of a column; _italic_: within noise of it; "
        "[n]: number of seeds, where it is fewer than others of the column have.",
        *_figures(bench),
        *_wins(bench),
        *_zeros(bench),
        *_costs(bench),
        *_learning(bench),
        *_missing(bench),
        "## What was run",
        _table(("", ""), facts(bench)),
        "Versions: " + (", ".join(f"{name} {value}" for name, value in versions(bench)) or "none recorded") + ".",
        _table(("setting", "value"), shared_settings(bench)),
        "## How to read this",
        _list(f"**{name}**: {text}" for name, text in terms()),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _first(bench: Bench) -> Iterator[str]:
    if said := incomplete(bench):
        where = " What is missing is listed [below](#what-is-missing)." if gaps(bench) else ""
        yield f"> **Incomplete.** {said}{where}"
        if ended := failures(bench):
            yield "Failed:"
            yield _list(f"{'; '.join(map(cell_said, cells))}: {_code(error)}" for error, cells in ended)
    if found := doubts(bench):
        yield "Before reading:"
        yield _list(found)


def _missing(bench: Bench) -> Iterator[str]:
    if lacking := gaps(bench):
        yield "## What is missing"
        yield _list(f"tier {g.tier}, {g.model}, {g.pruner}: {g.number} of {g.of} cells, {g.what}" for g in lacking)


def _standings(bench: Bench) -> Iterator[str]:
    ranked = standings(bench)
    if not ranked:
        return
    sparsities = bench.overall_sparsities
    yield (
        "From the pruner that leads most often down: to lead is to be the best of a place or within noise of it. "
        f"Against {bench.first}: places won beyond noise / within noise / lost. Share of the dense score: mean over "
        "all models and tasks, with its 95 % interval; **bold** is the best, _italic_ what is within noise of it, "
        "[n] the number of seeds, where others have more."
    )
    yield _table(
        ("pruner", "seeds", "leads", f"against {bench.first}", *(f"share at {nominal(s)}" for s in sparsities)),
        [
            (
                *(one.pruner, seeds_of(bench, one.pruner), f"{one.leads} of {one.places}"),
                str(duel(bench, one.pruner, bench.first or "")),
                *(_share(bench, bench.overall.get((sparsity, one.pruner))) for sparsity in sparsities),
            )
            for one in ranked
        ],
        right=1,
    )


def _share(bench: Bench, one: Overall | None) -> str:
    if one is None:
        return ""
    seeds = f" [{fewer}]" if (fewer := bench.fewer_seeds(one)) else ""
    mean = f"{one.share:.1f}"
    mean = f"**{mean}**" if one.best else f"_{mean}_" if one.close else mean
    return f"{mean}{seeds} ({one.low:.1f} to {one.high:.1f})"


def _leaders(bench: Bench) -> Iterator[str]:
    if not bench.places:
        return
    yield "Place by place:"
    yield _list(f"{place_said(place)}: {text}." for place, text in leaders(bench))
    if bench.first:
        behind = losses(bench)
        yield f"Where {bench.first} is behind another pruner beyond noise: {len(behind)} comparisons."
        yield _list(f"{place_said(place)}: {name} {difference_said(d)}" for place, name, d in behind)


def _figures(bench: Bench) -> Iterator[str]:
    for model in bench.models:
        places = columns(bench, model)
        if not places:
            continue
        yield f"### {model}"
        head = ("pruner", "tier", *(f"{p.task} {p.metric} {nominal(p.sparsity)}" for p in places))
        yield _table(
            head,
            [
                (
                    row.pruner,
                    tiers_said(row),
                    *(
                        _figure(bench, entry) if entry else state
                        for entry, state in zip(row.entries, row.states, strict=True)
                    ),
                )
                for row in rows(bench, model)
            ],
            right=2,
        )


def _figure(bench: Bench, entry: Entry) -> str:
    mean = f"{entry.mean:.1f}"
    mean = f"**{mean}**" if entry.best else f"_{mean}_" if entry.close else mean
    seeds = bench.few(entry)
    return mean + (f" ± {entry.std:.1f}" if entry.std is not None else "") + (f" [{seeds}]" if seeds else "")


def _wins(bench: Bench) -> Iterator[str]:
    names = [standing.pruner for standing in standings(bench)]
    if len(names) < 2:
        return
    yield "## Who beats whom"
    yield "Row against column: places won beyond noise / within noise / lost."
    found = {(a, b): duel(bench, a, b) for a in names for b in names if a != b}
    yield _table(
        ("", *names),
        [(a, *("" if a == b else str(found[a, b]) for b in names)) for a in names],
        right=1,
    )


def _zeros(bench: Bench) -> Iterator[str]:
    found = spreads(bench)
    if not found:
        return
    yield "## Where the zeros went"
    gone = collapsed(found)
    yield _list(f"{model}, {pruner}: {what}" for model, pruner, what in gone) if gone else "Nothing collapsed."
    yield _list(uneven(found))
    for model in dict.fromkeys(spread.model for spread in found):
        here = [spread for spread in found if spread.model == model]
        yield f"### {model}"
        yield _table(
            ("pruner", "sparsity", "seeds", *groups(here), "layers collapsed"),
            [
                (
                    *(spread.pruner, nominal(spread.sparsity), str(len(spread.seeds))),
                    *(percent(spread.groups[group], 1) if group in spread.groups else "" for group in groups(here)),
                    str(len(spread.gone_layers)),
                )
                for spread in here
            ],
            right=1,
        )


def _costs(bench: Bench) -> Iterator[str]:
    found = costs(bench)
    if not found:
        return
    yield "## Cost against quality"
    yield (
        "Seconds for the masks of all sparsities, mean over seeds; share of the dense score, mean over tasks, [n]: "
        "number of seeds, where it is fewer than others of the column have. The memory is the most that the whole "
        "process held, which may hold what it computed before."
    )
    for model in dict.fromkeys(cost.model for cost in found):
        sparsities = bench.sparsities(model)
        shares = [kept(bench, model, sparsity) for sparsity in sparsities]
        head = (
            "pruner",
            "seeds",
            "calibration s",
            "selection s",
            "pairs",
            "peak memory",
            *(nominal(s) for s in sparsities),
        )
        yield f"### {model}"
        yield _table(
            head,
            [
                (
                    *(
                        cost.pruner,
                        str(cost.prunings),
                        number(cost.calibration),
                        number(cost.selection),
                        str(cost.pairs),
                    ),
                    size(cost.peak_memory),
                    *(_kept(of.get(cost.pruner)) for of in shares),
                )
                for cost in found
                if cost.model == model
            ],
            right=1,
        )


def _kept(one: Kept | None) -> str:
    return f"{one.share:.1f} %" + (f" [{one.few}]" if one.few else "") if one else ""


def _learning(bench: Bench) -> Iterator[str]:
    if found := lessons(bench):
        yield "## How long to fine-tune"
        yield "The dense models on the validation data; every cell of a task is fine-tuned for as many steps."
        yield gained(found) or ""
        yield _list(verdict(lesson) for lesson in found)


def _table(head: Sequence[str], body: Sequence[Sequence[str]], right: int = 99) -> str:
    """A table whose columns from number ``right`` on are right-aligned."""
    if not body:
        return ""
    ruler = ["---:" if i >= right else "---" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in (head, ruler, *body))


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    """A span of code, in longer marks than those in it."""
    marks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " * (len(marks) > 1)
    return f"{marks}{pad}{text}{pad}{marks}"


def _list(items: Sequence[str] | Iterator[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
