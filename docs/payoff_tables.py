"""The tables of what zeros buy, from the committed figures of ``benchmarks/payoff.py``."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "benchmarks" / "results" / "payoff.json"
PLACES = {"payoff": FOLDER / "payoff.md", "payoff-short": FOLDER.parent / "README.md"}
"""Name of a part -> the page that it stands in, between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

WAYS = ("dense bf16", "dense int8", "few bf16", "few8 int8", "walk bf16", "walk int8")


def quality(model: str, runs: dict[str, list[dict[str, float]]]) -> str:
    dense = fmean(run["seconds"] for run in runs["dense fp32"])
    lines = []
    for form, of in runs.items():
        mean = {key: fmean(run[key] for run in of) for key in of[0]}
        speed = dense / mean["seconds"]
        recall = f"{mean['tr1']:.1f} / {mean['ir1']:.1f}"
        lines.append(f"| {form} | {recall} | {1000 * mean['seconds']:.0f} | {speed:.2f} | {mean['bytes'] / 1e6:.1f} |")
    head = f"| {model} | TR@1 / IR@1 | ms for 8 pairs | times faster | MB of weights |\n|---|---:|---:|---:|---:|\n"
    return head + "\n".join(lines)


def layers(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        seconds = row["seconds"]
        times = [f"{seconds['dense fp32'] / seconds[way]:.2f}" if way in seconds else "-" for way in WAYS]
        shape = " x ".join(map(str, row["shape"]))
        lines.append(f"| {shape} | {row['sparsity']:.0%} | {row['tokens']} | {' | '.join(times)} |".replace("%", " %"))
    head = f"| layer | zeros | tokens | {' | '.join(WAYS)} |\n|---|---:|---:|{'---:|' * len(WAYS)}\n"
    return head + "\n".join(lines)


def sizes(found: dict[str, dict[str, Any]]) -> str:
    models = [name for name in found if name != "machine"]
    forms = [form for form in found[models[0]] if form != "dense load"]
    lines = []
    for form in forms:
        sparsity, values, compress = form.split()
        shares = [f"{found[name][form]['share']:.3f}" if form in found[name] else "-" for name in models]
        lines.append(f"| {float(sparsity):.0%} | {values} | {compress} | {' | '.join(shares)} |".replace("%", " %"))
    return (
        f"| zeros | values | compressed | {' | '.join(models)} |\n|---:|---|---|{'---:|' * len(models)}\n"
        + "\n".join(lines)
    )


def speeds(name: str, tables: dict[str, dict[str, Any]]) -> str:
    first = next(iter(tables.values()))
    columns = list(dict.fromkeys((cell["part"], cell["samples"]) for cell in first["times"]))
    columns = [column for column in columns if column[0] in ("whole", "decoding step")]
    lines = []
    for sparsity, table in tables.items():
        times = {(cell["form"], cell["part"], cell["samples"]): cell["median"] for cell in table["times"]}
        for form in dict.fromkeys(cell["form"] for cell in table["times"]):
            if form.startswith("sparse") or table is first:
                called = f"{form}, {float(sparsity):.0%} zeros".replace("%", " %") if "sparse" in form else form
                found = [times.get((form, *column)) for column in columns]
                shown = ["-" if t is None else f"{1000 * t:.3g}" for t in found]
                lines.append(f"| {called} | {table['sizes'][form]['memory'] / 1e6:.1f} | {' | '.join(shown)} |")
    head = " | ".join(f"{part}, {samples}" for part, samples in columns)
    return f"| {name} | MB | {head} |\n|---|---:|{'---:|' * len(columns)}\n" + "\n".join(lines)


def base(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return what was measured at base size."""
    text = []
    if "step" in found:
        lines = []
        for name, times in found["step"].items():
            for form, seconds in times.items():
                fp32, int8 = times["dense fp32"] / seconds, times["dense int8"] / seconds
                lines.append(f"| {name} | {form} | {1000 * seconds:.1f} | {fp32:.2f} | {int8:.2f} |")
        head = (
            "| decoding step, one image | form, 75 % zeros | ms | over fp32 | over int8 |\n|---|---|---:|---:|---:|\n"
        )
        text.append(head + "\n".join(lines))
    if "tower" in found:
        lines = []
        for name, times in found["tower"].items():
            for form, seconds in times.items():
                faster = times["dense fp32"] / seconds
                lines.append(f"| {name} | {form} | {1000 * seconds:.0f} | {faster:.2f} |")
        text.append("| a forward, one image | form | ms | over fp32 |\n|---|---|---:|---:|\n" + "\n".join(lines))
    if "mlp" in found:
        times = found["mlp"]["MLPs"]
        lines = []
        for name in dict.fromkeys(key.rpartition(", ")[0] for key in times):
            whole, half = times[f"{name}, whole"], times[f"{name}, half"]
            lines.append(f"| {name} | {1000 * whole:.2f} | {1000 * half:.2f} | {whole / half:.2f} |")
        head = "| MLPs in plain torch | ms | ms with half of the neurons | times faster |\n|---|---:|---:|---:|\n"
        text.append(head + "\n".join(lines))
    if "load" in found:
        lines = []
        for name, values in found["load"].items():
            for what, value in values.items():
                kind, _, which = what.partition(", ")
                shown = f"{value:.2f} s" if kind == "load" else f"{value:.2f} GB/s"
                called = f"loading it {which}" if kind == "load" else f"decoding by {which}"
                lines.append(f"| {name} | {called} | {shown} |")
        text.append("| packed at 75 % zeros, bfloat16 | what | |\n|---|---|---:|\n" + "\n".join(lines))
    return text


def about(machine: dict[str, Any], clock: str = "CPU time") -> str:
    return f"{machine['cpu']}, {machine['kernels']}, torch {machine['torch']}, one thread, {clock}"


def parts() -> dict[str, str]:
    """Return the text of each part."""
    found = json.loads(RESULTS.read_text())
    machine = found["quality"].pop("machine")
    models = {name: quality(name, runs) for name, runs in found["quality"].items()}
    seeds = {name: len(next(iter(runs.values()))) for name, runs in found["quality"].items()}
    said = ", ".join(f"{name}: {count} seed{'s' * (count > 1)}" for name, count in seeds.items())
    text = [
        f"Straight after pruning, zero-shot retrieval on Shapes ({said}). Measured on: {about(machine)}.",
        *models.values(),
    ]
    if "speed" in found:
        machine = found["speed"].pop("machine")
        text += [
            f"A forward and a decoding step, milliseconds for 1 and 8 samples ({about(machine)}); zeros are by "
            "magnitude, the same share in every layer:",
            *(speeds(name, tables) for name, tables in found["speed"].items()),
        ]
    for measured in found.get("base", {}).values():  # one for each kind of processor
        machine = measured["step"]["machine"]
        parts_ = {what: {k: v for k, v in of.items() if k != "machine"} for what, of in measured.items()}
        where = about(machine, "wall time, nothing beside it")
        text += [
            f"At base size, random weights, zeros by magnitude, the same share in every layer ({where}):",
            *base(parts_),
        ]
    if "sizes" in found:
        text += [
            "Bytes of the packed tensors in a file, as a share of these tensors dense in bfloat16:",
            sizes(found["sizes"]),
        ]
    machine = found["layers"].pop("machine")
    text += [
        f"One layer, inputs and weights from memory: times faster than dense float32 ({about(machine)}):",
        layers(found["layers"]["rows"]),
    ]
    first = next(iter(models.values()))
    return {"payoff": "\n\n".join(text), "payoff-short": first}
