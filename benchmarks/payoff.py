"""What zeros buy: bytes, milliseconds and quality, measured on this machine.

    python benchmarks/payoff.py layers               one layer: every way of the sparse runtime against dense products
    python benchmarks/payoff.py sizes                packed files: the prunable part against dense bfloat16
    python benchmarks/payoff.py speed xvlm-base      a model in every form, as mf.speed measures it
    python benchmarks/payoff.py quality xvlm-shapes  what a smaller or sparser model still finds, and its time
    python benchmarks/payoff.py forms xvlm-shapes    keeps these models in a file, and
    python benchmarks/payoff.py times xvlm-shapes    times them anew, in seconds when the machine is quiet

Each adds its figures to benchmarks/results/payoff.json, of which ``python docs/generate.py`` makes the tables of the
documents. Times are CPU seconds of one thread, in turns, medians: the machine had other work to do.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from base_models import MODELS, build, machine, make_batches
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

import multiflow as mf
from multiflow.base.kernels import LEVELS, kernels, pack_matrix
from multiflow.base.packed import FILE, read_packed
from multiflow.data import to_pixels
from multiflow.families.opening import fitting_tokenizer, quiet_transformers
from multiflow.formats.sparse_linear import multiply, ways_of
from multiflow.formats.speeds import memory_of_weights, quantised
from multiflow.formats.timing import in_turns
from multiflow.tasks.retrieval.rerank import evaluate_retrieval
from multiflow.worlds.shapes import describe, make_scenes, render

RESULTS = Path(__file__).parent / "results" / "payoff.json"
SPARSITIES = (0.63, 0.75, 0.9)
TOKENS = (1, 8, 64, 197)
FLUSH = 48 << 20
CPU = time.process_time


def layers(turns: int) -> dict[str, Any]:
    """Time products of one layer, from memory as in the middle of a model."""
    rows: list[dict[str, Any]] = []
    for shape in ((3072, 768), (768, 3072)):
        for sparsity in SPARSITIES:
            generator = torch.Generator().manual_seed(0)
            dense = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) > sparsity)
            half, packed = dense.bfloat16(), {k: pack_matrix(dense, k) for k in (torch.bfloat16, torch.int8)}
            linear = nn.Linear(shape[1], shape[0], bias=False)
            linear.weight.data.copy_(dense)
            int8 = quantised(nn.Sequential(linear))
            for tokens in TOKENS:
                inputs = torch.randn(tokens, shape[1], generator=generator)
                short = inputs.bfloat16()
                runs: dict[str, Callable[[], object]] = {
                    "dense fp32": lambda i=inputs, d=dense: F.linear(i, d),
                    "dense bf16": lambda i=short, d=half: F.linear(i, d),
                    "dense int8": lambda i=inputs, m=int8: m(i),
                }
                for kind, matrix in packed.items():
                    for way in ways_of(kind, shape[1]):
                        if tokens > 64 and way.startswith("few"):
                            continue
                        name = f"{way} {str(kind).removeprefix('torch.').replace('bfloat16', 'bf16')}"
                        runs[name] = lambda w=way, a=matrix.arguments, i=inputs: multiply(w, a, i, None)
                with torch.inference_mode():
                    timed = in_turns(runs, turns, FLUSH, clock=CPU)
                found = {name: timing.median for name, timing in timed.items()}
                rows.append({"shape": list(shape), "sparsity": sparsity, "tokens": tokens, "seconds": found})
                print(shape, sparsity, tokens, {n: round(1e6 * t) for n, t in found.items()}, flush=True)
    return {"rows": rows}


def sizes(names: list[str]) -> dict[str, Any]:
    """Bytes of the prunable part of packed files, as shares of that part dense in bfloat16; seconds to load."""
    found: dict[str, Any] = {}
    for name in names:
        model = load(name).bfloat16()
        entry: dict[str, Any] = {}
        for sparsity in (0.75, 0.9):
            masks = mf.prune(model, "magnitude-layer", sparsity).masks[sparsity]
            for values, compress in (("bf16", "none"), ("bf16", "zlib"), ("bf16", "zstd"), ("int8", "zstd")):
                with tempfile.TemporaryDirectory() as place, quiet_transformers():
                    try:
                        folder = mf.export(model, masks, Path(place) / "packed", values=values, compress=compress)
                    except mf.MultiflowError as error:  # zstd is optional
                        print(name, compress, error)
                        continue
                    share, size = packed_share(folder / FILE), (folder / FILE).stat().st_size
                    begun = time.perf_counter()
                    mf.load_model(folder)
                    seconds = time.perf_counter() - begun
                entry[f"{sparsity:g} {values} {compress}"] = {"share": share, "bytes": size, "load": seconds}
                print(name, sparsity, values, compress, f"{share:.3f}", f"{seconds:.2f} s", flush=True)
        with tempfile.TemporaryDirectory() as place, quiet_transformers():
            model.save_pretrained(place)
            begun = time.perf_counter()
            mf.load_model(place)
            entry["dense load"] = time.perf_counter() - begun
        found[name] = entry
        del model
        gc.collect()
    return found


def packed_share(path: Path) -> float:
    """The bytes of the packed tensors of a file, as a share of theirs dense in bfloat16."""
    with safe_open(path, "pt") as file:
        there = set(file.keys())
        packed = {name: tensor for name, tensor in read_packed(path).items() if f"{name}.bitmap" in there}
        parts = [f"{name}.{part}" for name in packed for part in ("bitmap", "values", "scales")]
        stored = sum(math.prod(file.get_slice(part).get_shape()) for part in parts if part in there)
    return stored / (2 * sum(tensor.numel() for tensor in packed.values()))


def speed(name: str, samples: list[int], seconds: float, sparsities: list[float], forms: list[str]) -> dict[str, Any]:
    """Measure a model dense, sparse at some sparsities, and with half of the neurons."""
    model = load(name)
    batch = make_batches(name, 1, max(samples))[0] if name in MODELS else None
    found: dict[str, Any] = {}
    half = mf.compact(model, mf.prune_units(model, "magnitude", 0.5).masks[0.5])
    for sparsity in sparsities:
        masks = mf.prune(model, "magnitude-layer", sparsity).masks[sparsity]
        table = mf.speed(
            model,
            masks,
            batch=batch,
            samples=samples,
            forms=forms or None,
            others={"half of the neurons": half},
            seconds=seconds,
            files=sparsity == 0.75 and name not in MODELS,
            clock="cpu",
        )
        print(table, flush=True)
        found[f"{sparsity:g}"] = table.to_dict()
    return found


def quality(name: str, seeds: list[int], scenes: int) -> dict[str, Any]:
    """Zero-shot retrieval straight after pruning, with the time of a forward and the bytes of the weights."""
    model = load(name)
    place = str(model.name_or_path)
    tokenizer = fitting_tokenizer(None, place, model.config.text["vocab_size"])
    side = model.config.image_size
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        worlds = make_scenes("test", scenes, seed=seed)
        captions = [[describe(scene, 1)[0]] for scene in worlds]
        pixels = torch.from_numpy(to_pixels([render(scene, side) for scene in worlds], side))
        batches = list(mf.calibration_batches(model, batches=16, batch_size=64, seed=seed))
        forms = variants(model, batches)
        batch = {k: v[:8] for k, v in batches[0].items() if k in ("pixel_values", "input_ids", "attention_mask")}
        forward = mf.adapter_for(model).forward
        with torch.inference_mode():
            timed = in_turns({n: partial(forward, m, batch) for n, m in forms.items()}, 9, clock=CPU)
        for form, one in forms.items():
            found = evaluate_retrieval(one, pixels, captions, tokenizer).reranked
            run = {"tr1": found.tr1, "ir1": found.ir1, "seconds": timed[form].median, "bytes": memory_of_weights(one)}
            runs.setdefault(form, []).append(run)
            print(name, seed, form, {k: round(v, 4) for k, v in run.items()}, flush=True)
    return runs


def keep_forms(name: str, place: Path) -> None:
    """Keep the models of `quality`, of the first seed, and a batch in a file."""
    model = load(name)
    batches = list(mf.calibration_batches(model, batches=16, batch_size=64, seed=0))
    batch = {k: v[:8] for k, v in batches[0].items() if k in ("pixel_values", "input_ids", "attention_mask")}
    torch.save((variants(model, batches), batch), place)


def retimed(name: str, place: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Time kept models, and return the known figures of `quality` with these times and the bytes."""
    forms, batch = torch.load(place, weights_only=False)
    forward = mf.adapter_for(forms["dense fp32"]).forward
    with torch.inference_mode():
        timed = in_turns({n: partial(forward, m, batch) for n, m in forms.items()}, 15, clock=CPU)
    for form, runs in known[name].items():
        for run in runs:
            run |= {"seconds": timed[form].median, "bytes": memory_of_weights(forms[form])}
        print(name, form, f"{1000 * timed[form].median:.1f} ms", flush=True)
    return known


def variants(model: Any, batches: list[Mapping[str, Any]]) -> dict[str, nn.Module]:
    """The dense model and what pruning makes of it."""
    forms: dict[str, nn.Module] = {"dense fp32": model, "dense int8": quantised(model)}
    flow = mf.prune(model, "multiflow", [0.63, 0.75], batches)
    for sparsity, masks in flow.masks.items():
        forms[f"multiflow {sparsity:.0%}, sparse runtime bf16"] = mf.sparse_runtime(model, masks)
    plain = mf.prune_units(model, "magnitude", 0.5, batches, compensate=False)
    forms["50 % of the neurons, magnitude"] = mf.compact(model, plain.masks[0.5])
    raw = mf.prune_units(model, "multiflow", 0.5, batches, compensate=False)
    forms["50 % of the neurons, flow"] = mf.compact(model, raw.masks[0.5])
    fitted = mf.prune_units(model, "multiflow", [0.25, 0.5, 0.75], batches)
    for share, masks in fitted.masks.items():
        forms[f"{share:.0%} of the neurons, flow, refitted".replace("%", " %")] = mf.compact(
            model, masks, fitted.weights[share]
        )
    half = forms["50 % of the neurons, flow, refitted"]
    inside = mf.prune(half, "multiflow", 0.5, batches).masks[0.5]
    forms["the same, 50 % zeros inside, sparse runtime bf16"] = mf.sparse_runtime(half, inside)
    return forms


def load(name: str) -> Any:
    with quiet_transformers():
        return build(name) if name in MODELS else mf.load_model(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["layers", "sizes", "speed", "quality", "forms", "times"])
    parser.add_argument("models", nargs="*", default=["xvlm-shapes"])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.75, 0.9])
    parser.add_argument("--forms", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--forms-file", type=Path, default=Path(tempfile.gettempdir()) / "payoff-forms.pt")
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = {**machine(), "kernels": LEVELS[kernels().level]}
    found: dict[str, Any] = {}
    if given.what == "layers":
        found = layers(given.turns)
    elif given.what == "sizes":
        found = sizes(given.models)
    known = json.loads(given.json.read_text()) if given.json.exists() else {}
    for name in given.models:
        if given.what == "forms":
            keep_forms(name, given.forms_file)
        elif given.what == "times":
            known["quality"] = retimed(name, given.forms_file, known["quality"])
        elif given.what == "speed":
            found[name] = speed(name, given.samples, given.seconds, given.sparsities, given.forms)
        elif given.what == "quality":
            found[name] = quality(name, given.seeds, given.scenes)
    if given.what == "forms":
        return
    given.what = given.what.replace("times", "quality")
    merged = {**known.get(given.what, {}), **found, "machine": about}
    given.json.write_text(json.dumps({**known, given.what: merged}, indent=1) + "\n")
    if given.what == "quality" and found:
        for name in given.models:
            for form, runs in found[name].items():
                print(name, form, *(f"{key} {statistics.fmean(run[key] for run in runs):.4g}" for key in runs[0]))


if __name__ == "__main__":
    main()
