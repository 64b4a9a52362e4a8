"""The report of a benchmark, as a page, Markdown, CSV and LaTeX.

The page says what must be known first, its sections, how it was made and how to read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from multiflow.base.files import write_atomically
from multiflow.bench.records import DENSE, Cell, Pruning
from multiflow.report.bench.cost import cost_section, total_seconds
from multiflow.report.bench.learning import learning_section
from multiflow.report.bench.payoff import payoff_section
from multiflow.report.bench.quality import (
    columns,
    curves,
    duels,
    figures,
    figures_table,
    group_tint,
    pruner_row,
    summary,
)
from multiflow.report.bench.results import Bench, PlaceEntry, gather
from multiflow.report.bench.statistics import RESAMPLES, Difference
from multiflow.report.bench.words import cell_text, doubts, duel, failures, gaps, headline, incomplete, scope
from multiflow.report.charts import COLLAPSED, DENSE_LOOK, Look, looks
from multiflow.report.document import (
    Block,
    Document,
    Group,
    Items,
    Mark,
    Pairs,
    Paragraph,
    Section,
    Verdict,
    markdown,
    page,
)
from multiflow.report.tables import Column, Table, TableCell, csv_text, latex_table, plain_table
from multiflow.report.text import NBSP, count, day, duration, nominal, percent, seeds_text, setting, span
from multiflow.report.zeros import (
    EVEN,
    Spread,
    collapse_verdict,
    groups,
    layer_panels,
    spreads,
    uneven,
)

OPEN = 8
"""Longer lists are folded."""
SHORT = 90
"""Longer values of settings are cut."""
SHARED = "a calibration pass that pruners share counts for each of them"


def bench_document(bench: Bench) -> Document:
    styles = {DENSE: DENSE_LOOK, **looks(name for name in bench.pruners if name != DENSE)}
    cells, prunings = total_seconds(bench)
    done, whole = len(bench.cells), len(bench.expected)
    facts_ = [
        (f"{done} of {whole}" if done < whole else str(whole), "cells have figures"),
        (str(len(bench.rivals)), f"pruners, {count(len(bench.models), 'model')}"),
        (str(len(bench.places)), "places: a model, a task and a sparsity"),
        (duration(cells + prunings), f"of pruning, fine-tuning and evaluation; {SHARED}"),
    ]
    sections = [
        summary(bench, styles),
        figures(bench, styles),
        curves(bench, styles),
        duels(bench, styles),
        zeros(bench, styles),
        cost_section(bench, styles),
        payoff_section(bench, styles),
        learning_section(bench),
        _making(bench),
        Section("reading", "How to read this", [Pairs(TERMS)]),
    ]
    return Document(
        bench.title,
        headline(bench),
        scope(bench),
        facts_,
        [replace(section, folded=at > 0) for at, section in enumerate(filter(None, sections))],
        styles,
        _first(bench),
        _tiers(bench),
    )


def _first(bench: Bench) -> Block | None:
    said, found = incomplete(bench), doubts(bench)
    if not said and not found:
        return None
    lacking = [
        (f"tier {gap.tier}, {gap.model}, ", Mark(gap.pruner, "strong"), f": {gap.number} of {gap.of} cells, {gap.what}")
        for gap in gaps(bench)
    ]
    failed = []
    for error, cells in failures(bench):
        more = f" and {len(cells) - 4} more" if len(cells) > 4 else ""
        failed.append((f"{'; '.join(map(cell_text, cells[:4]))}{more}: ", Mark(error, "code")))
    blocks: list[Block] = [Verdict("mixed", "Incomplete.", said)] if said else []
    blocks += [
        Items(failed, "what failed", len(failed) <= OPEN),
        Items(lacking, "what is missing", len(lacking) <= OPEN),
    ]
    blocks += [Verdict("mixed", "Before reading", items=found)] if found else []
    return Group(blocks)


def _tiers(bench: Bench) -> list[tuple[str, str]]:
    """The buttons that choose a tier in all tables; none where there is nothing to choose."""
    used = {tier for pruner, tiers in bench.tiers_of.items() if pruner != DENSE for tier in tiers}
    chosen = [(str(number), f"tier {tier}") for number, tier in enumerate(bench.tiers, 1) if tier in used]
    return [("", "all"), *chosen] if len(chosen) > 1 else []


def zeros(bench: Bench, styles: Mapping[str, Look]) -> Section | None:
    """Return the section of where the zeros went: what collapsed, a table of groups a model, bars of the layers."""
    found = spreads(bench.prunings, bench.models, bench.pruners)
    if not found:
        return None
    blocks: list[Block] = [collapse_verdict(found), Items(uneven(found))]
    for model in dict.fromkeys(spread.model for spread in found):
        here = [spread for spread in found if spread.model == model]
        loud = [spread for spread in here if spread.pruner in bench.loud]
        quiet = [spread for spread in here if spread.pruner not in bench.loud]
        columns = sorted({spread.sparsity for spread in here})
        blocks += [Paragraph(model, "h3"), _groups_table(bench, here, styles)]
        for these, which in ((loud, "pruner"), (quiet, "other pruner")):
            pruners = count(len({spread.pruner for spread in these}), which)
            panels = layer_panels(these, styles, columns)
            blocks += [Group(panels, under=f"layers of {pruners} on {model}")] * bool(panels)
    lead = (
        "Did some part of the model lose more than its share? The table has the share of zeros of each group of "
        "layers, amber the more a group lost beyond what was asked for; below it is one bar a layer, dashed what was "
        "asked for, solid what each group got. ",
        Mark(f"Red with a flag is collapsed: at least {percent(COLLAPSED)} zeros.", "gone"),
    )
    return Section("zeros", "Where the zeros went", blocks, lead)


def _groups_table(bench: Bench, found: list[Spread], styles: Mapping[str, Look]) -> Table:
    by_pruner: dict[str, dict[float, Spread]] = {}
    for spread in found:
        by_pruner.setdefault(spread.pruner, {})[spread.sparsity] = spread
    places = [(s, group) for s in sorted({spread.sparsity for spread in found}) for group in groups(found)]
    head = [Column("pruner", class_="first"), Column("seeds", hint="prunings of the means", class_="number")]
    head += [Column(group, f"{nominal(s)} zeros asked for", class_="number") for s, group in places]
    rows = []
    for pruner, own in by_pruner.items():
        seeds = [len(spread.seeds) for spread in own.values()]
        cells = [_group_cell(own.get(sparsity), group) for sparsity, group in places]
        rows.append(pruner_row(bench, pruner, [TableCell(span(seeds), max(seeds)), *cells], styles))
    return Table(head, rows, f"{found[0].model}: share of zeros in each group of layers, mean over seeds")


def _group_cell(spread: Spread | None, group: str) -> TableCell:
    if spread is None or group not in spread.groups:
        return TableCell()
    share, sparsity = spread.groups[group], spread.sparsity
    tinted = share - sparsity > EVEN / 2
    look = "gone lean flat" if share >= COLLAPSED else "lean down" if tinted else "lean flat"
    tip = (
        f"{spread.pruner}, {nominal(sparsity)} zeros, {seeds_text(spread.seeds)}: {len(spread.gone_layers)} of "
        f"{len(spread.layout)} layers collapsed"
    )
    return TableCell(percent(share, 1), share, look, tip=tip, tint=group_tint(share, sparsity) if tinted else None)


def _making(bench: Bench) -> Section:
    shared = shared_settings(bench)
    pair = Group([Pairs(facts(bench)), Pairs(versions(bench), "Versions")], "pair")
    return Section("making", "What was run", [pair, Pairs(shared, "settings of the cells", folded=True)])


def facts(bench: Bench) -> list[tuple[str, str]]:
    cells, prunings = total_seconds(bench)
    done = [*bench.cells, *bench.failed]
    finished = sorted(cell.finished for cell in done if cell.finished)
    span = f"{day(finished[0])} to {day(finished[-1])}" if finished else "nothing yet"
    seeds = sorted({cell.seed for cell in bench.expected})
    return [
        (
            "cells",
            f"{len(bench.cells)} with figures, {len(bench.failed)} failed, {len(bench.missing)} missing, "
            f"of {len(bench.expected)}",
        ),
        ("models", ", ".join(bench.models)),
        ("pruners", ", ".join(name for name in bench.pruners if name != DENSE)),
        ("seeds", ", ".join(map(str, seeds))),
        (
            "time",
            f"{duration(cells)} of fine-tuning and evaluation, {duration(prunings)} of calibration and selection "
            f"({SHARED})",
        ),
        ("computed", span),
        ("machine", "; ".join(_unique(one.machine or "unknown" for one in bench.records)) or "none yet"),
        ("git", ", ".join(_unique(one.git or "no git" for one in bench.records)) or "none yet"),
    ]


def versions(bench: Bench) -> list[tuple[str, str]]:
    names = _unique(name for one in bench.records for name in one.versions)
    return [(name, ", ".join(_unique(one.versions.get(name, "unknown") for one in bench.records))) for name in names]


def shared_settings(bench: Bench) -> list[tuple[str, str]]:
    flat = [dict(_flat(cell.settings)) for cell in bench.cells]
    shown = []
    for name in _unique(name for settings in flat for name in settings):
        values = _unique(setting(settings[name]) if name in settings else "absent" for settings in flat)
        text = values[0] if len(values) == 1 else ", ".join(values) if len(values) <= 6 else f"{len(values)} values"
        shown.append((name, text if len(text) <= SHORT else text[: SHORT - 1] + "\N{HORIZONTAL ELLIPSIS}"))
    return shown


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unique(values: Any) -> list[str]:
    return list(dict.fromkeys(values))


TERMS = [
    ("place", "One model, one task, one sparsity: where pruners are compared."),
    ("cell", "One model, pruned or dense, fine-tuned for one task with one seed."),
    (
        "mean ± std",
        "Mean and sample standard deviation over seeds of the main figure on the test data. A mean over fewer "
        "seeds than others of its column is marked with its number of seeds.",
    ),
    (
        "interval, noise",
        f"95 % of {RESAMPLES:,} resamples (bootstrap): test items drawn with replacement, the same for all pruners "
        "and seeds, and seeds drawn with replacement. Two pruners are compared on the seeds that both have, item "
        "by item; they are within noise of each other where the interval of their difference includes 0. One seed "
        "alone says nothing of the luck of a training: its intervals are too narrow, and three seeds know that "
        "luck only roughly.",
    ),
    (
        "many comparisons",
        "Of 40 comparisons of pruners that are equally good, about one is called a win and one a loss by luck.",
    ),
    (
        "best",
        "The pruner that is ahead of most others at its place, on the seeds they share; with the same seeds "
        "everywhere that is the highest mean. The dense baseline does not take part.",
    ),
    (
        "share of the dense score",
        "Score relative to the dense baseline's, over the seeds that both have of all tasks, then the mean over "
        "tasks, or over models and tasks, each counting alike. Chance is not taken off: a share of nothing learned "
        "is above 0.",
    ),
    ("zeros", "Share of the prunable weights that are zero; embeddings, norms, biases and heads stay dense."),
    ("group", "Layers that belong together: vision, text and fusion, or as a family of models divides its own."),
    ("collapsed", f"At least {percent(COLLAPSED)} zeros in a layer or in a group: hardly a signal passes."),
    (
        "seconds",
        "Calibration and selection for the masks of all sparsities. Pruners that share a calibration pass each "
        "state its whole cost.",
    ),
]
"""The words of the report and what they mean."""


def write_report(
    cells: Sequence[Cell],
    prunings: Sequence[Pruning],
    expected: Sequence[Cell],
    folder: Path,
    title: str,
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write ``report.html``, ``report.md``, three CSV files and ``tables.tex``; return their paths.

    Args:
        cells: what was computed, failed cells included, in the order of the file.
        prunings: the prunings of the cells.
        expected: all cells of the grid without figures, so that the report can say what is missing; none: unknown.
        folder: where to write; made if need be.
        title: of the report.
        notes: what else is to be said before the figures, such as lines that could not be read.

    Raises:
        MultiflowError: the folder cannot be written.
    """
    bench = gather(cells, prunings, expected, title, notes)
    document = bench_document(bench)
    files = {
        "report.html": page(document),
        "report.md": markdown(document),
        "tables.csv": tables_csv(bench),
        "pairs.csv": pairs_csv(bench),
        "cells.csv": cells_csv(bench),
        "tables.tex": tables_tex(bench),
    }
    return [write_atomically(Path(folder) / name, text) for name, text in files.items()]


def tables_tex(bench: Bench) -> str:
    """Return a table a model: the best of a column bold, what is within noise of it underlined."""
    made = [r"% needs \usepackage{booktabs}"]
    for model in [model for model in bench.models if columns(bench, model)]:
        caption = (
            f"{model}: mean and standard deviation over seeds. Bold: best of a column. Underlined: within noise of it "
            f"(95{NBSP}% paired bootstrap)."
        )
        if any(bench.few(entry) for (place, _), entry in bench.entries.items() if place.model == model):
            caption += " A superscript is the number of seeds of a mean over fewer than others of its column."
        made.append(latex_table(figures_table(bench, model, caption)))
    return "\n".join(made)


def tables_csv(bench: Bench) -> str:
    """Return one line a model, task, sparsity and pruner; differences are in points of the metric."""
    head = [
        *("model", "task", "metric", "sparsity", "pruner", "tier", "seeds", "seed_list", "mean", "std", "low", "high"),
        *("to_dense", "to_dense_low", "to_dense_high", "within_noise_of_dense", "best"),
        *("to_best", "to_best_low", "to_best_high", "within_noise_of_best", "common_seeds_with_best"),
    ]

    def line(entry: PlaceEntry) -> list[object]:
        place = entry.place
        return [
            *(place.model, place.task, place.metric, place.sparsity, entry.pruner, entry.tier),
            *(len(entry.cells), " ".join(map(str, entry.seeds)), entry.mean, entry.std, entry.low, entry.high),
            *_ends(entry.to_dense),
            entry.to_dense and int(entry.to_dense.noise),
            int(entry.best) if place.sparsity else None,
            *_ends(entry.to_best),
            1 if entry.best else entry.to_best and int(entry.close),
            entry.to_best and " ".join(map(str, entry.to_best.seeds)),
        ]

    return csv_text(plain_table(head, map(line, bench.entries.values())))


def pairs_csv(bench: Bench) -> str:
    """Return one line a pair of pruners and sparsity: places won, level and lost, and the difference over all of them.

    ``share`` is the difference of the shares of the dense score, mean over all models and tasks, in points of percent.
    """
    head = ["sparsity", "a", "b", "places", "wins", "ties", "losses", "share", "share_low", "share_high", "seeds"]
    lines = []
    for sparsity in sorted({place.sparsity for place in bench.places}):
        for a, b in combinations(bench.rivals, 2):
            found = duel(bench, a, b, sparsity)
            difference = bench.overall_differences.get((sparsity, a, b))
            seeds = difference and " ".join(map(str, difference.seeds))
            if found.places:
                counts = (found.places, found.wins, found.ties, found.losses)
                lines.append([sparsity, a, b, *counts, *_ends(difference), seeds])
    return csv_text(plain_table(head, lines))


def cells_csv(bench: Bench) -> str:
    """Return one line a cell of the grid: its figures and its cost, or why it has none."""
    figures = list(dict.fromkeys(name for cell in bench.cells for name in cell.figures))
    head = [
        *("id", "tier", "model", "pruner", "sparsity", "task", "seed", "state", "error", "metric", "score"),
        *("items", "steps", "finetune", "evaluate", "peak_memory", "pruning", "git", "machine", "finished"),
        *("forward", "dense_forward", "memory", "dense_memory", *figures),
    ]

    def line(state: str, cell: Cell) -> list[object]:
        return [
            *(cell.id, cell.tier, cell.model, cell.pruner, cell.sparsity, cell.task, cell.seed, state, cell.error),
            *(cell.metric, cell.score, len(cell.each) or None, cell.steps or None),
            *(cell.seconds.get("finetune"), cell.seconds.get("evaluate"), cell.peak_memory or None),
            *(cell.pruning, cell.git, cell.machine, cell.finished),
            *(cell.cost.get(name) for name in ("forward", "dense_forward", "memory", "dense_memory")),
            *(cell.figures.get(name) for name in figures),
        ]

    states = (("done", bench.cells), ("failed", bench.failed), ("missing", bench.missing))
    return csv_text(plain_table(head, [line(state, cell) for state, cells in states for cell in cells]))


def _ends(difference: Difference | None) -> tuple[float | None, ...]:
    return (difference.value, difference.low, difference.high) if difference else (None, None, None)
