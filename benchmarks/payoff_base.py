"""What zeros buy at base size (random weights), each in less than two minutes, for a machine that is quiet so long.

    python benchmarks/payoff_base.py step blip-base      a decoding step for one image, dense and sparse
    python benchmarks/payoff_base.py tower               a forward of ViT-B/16 for one image
    python benchmarks/payoff_base.py mlp                 MLPs with half of their neurons, in plain torch
    python benchmarks/payoff_base.py load blip-base      how long a packed folder takes to load, rates of decoding

Each adds its figures to benchmarks/results/payoff.json. Times are seconds that pass, of one thread, forms in turns, the
median.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from base_models import build, machine, make_batches
from payoff import FLUSH, RESULTS
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import multiflow as mf
from multiflow.base.kernels import LEVELS, kernels, pack_matrix
from multiflow.base.packed import decode, encode
from multiflow.families.opening import quiet_transformers
from multiflow.formats.speeds import CLOCKS, quantised, task_decoder, token_steps
from multiflow.formats.timing import Timing, in_turns

SPARSITY = 0.75


def step(name: str, seconds: float) -> dict[str, float]:
    """Time one more token of ``generate`` for one image: the captioning model that is built from a base model."""
    with quiet_transformers():
        model = build(name)
    masks = mf.prune(model, "magnitude-layer", SPARSITY).masks[SPARSITY]
    found = task_decoder(model, masks)
    if found is None or found[1] is None:
        raise SystemExit(f"{name} does not write")
    writer, own = found
    forms: dict[str, nn.Module] = {"dense fp32": writer, "dense int8": quantised(writer)}
    forms |= {f"sparse {values}": mf.sparse_runtime(writer, own, values=values) for values in ("bf16", "int8")}
    batch = make_batches(name, 1, 1)[0]
    cells = token_steps(forms, batch, 1, seconds, False, CLOCKS["wall"])
    return {cell.form: cell.timing.median for cell in cells}


def tower(seconds: float) -> dict[str, float]:
    """Time a ViT-B/16, one image of 197 tokens."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(num_labels=1000)).eval()
    forms: dict[str, nn.Module] = {"dense fp32": model, "dense int8": quantised(model)}
    for sparsity, masks in mf.prune(model, "magnitude-layer", [SPARSITY, 0.9]).masks.items():
        for values in ("bf16", "int8"):
            small = mf.sparse_runtime(model, masks, values=values)
            forms[f"sparse {values}, {100 * sparsity:.0f} % zeros"] = small
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        return medians({name: lambda one=one: one(pixels) for name, one in forms.items()}, seconds)


def mlp(seconds: float) -> dict[str, float]:
    """Time all MLPs of the bundled X-VLM on 8 pairs, and one of base size, whole and with half of the neurons."""
    model = mf.load_model("xvlm-shapes")
    batch = next(iter(mf.calibration_batches(model, batches=1, batch_size=8)))
    masks = mf.prune_units(model, "magnitude", 0.5).masks[0.5]
    half = mf.compact(model, masks)
    runs: dict[str, Callable[[], object]] = {}
    changed = [layer.paths[0] for layer in masks.layout.layers if not masks[layer.name].all()]
    for name, one in (("xvlm-shapes, whole", model), ("xvlm-shapes, half", half)):
        parts = mlps_of(one, changed, batch)
        runs[name] = lambda parts=parts: [last(torch.nn.functional.gelu(first(x))) for first, last, x in parts]
    for tokens in (1, 197):
        inputs = torch.randn(tokens, 768)
        for name, width in (("whole", 3072), ("half", 1536)):
            one = nn.Sequential(nn.Linear(768, width), nn.GELU(), nn.Linear(width, 768)).eval()
            runs[f"768 x 3072, {tokens} tokens, {name}"] = lambda one=one, inputs=inputs: one(inputs)
    with torch.inference_mode():
        return medians(runs, seconds, turns=200)


def mlps_of(model: nn.Module, paths: list[str], batch: Any) -> list[tuple[nn.Module, nn.Module, Tensor]]:
    """Return the two layers of each MLP, among layers that lost neurons, and what the first is given in a forward."""
    modules = dict(model.named_modules())
    pairs = list(zip(paths[::2], paths[1::2], strict=True))
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args: given.update({name: args[0]})

    hooks = [modules[first].register_forward_pre_hook(keep(first)) for first, _ in pairs]
    with torch.no_grad():
        mf.adapter_for(model).forward(model, batch)
    for hook in hooks:
        hook.remove()
    for first, last in pairs:
        if modules[first].out_features != modules[last].in_features:
            raise SystemExit(f"'{first}' and '{last}' are no MLP")
    return [(modules[first], modules[last], given[first]) for first, last in pairs]


def load(name: str) -> dict[str, float]:
    """Time loading a folder in bfloat16, dense and packed; give rates of decoding in bytes of dense bfloat16."""
    found: dict[str, float] = {}
    with quiet_transformers(), tempfile.TemporaryDirectory() as place:
        model = build(name).bfloat16()
        mf.prune(model, "magnitude-layer", SPARSITY).masks[SPARSITY].apply_(model)
        folders = {"dense": Path(place) / "dense"}
        model.save_pretrained(folders["dense"])
        for compress in ("none", "zstd"):
            folders[f"packed, {compress}"] = mf.export(model, None, Path(place) / compress, compress=compress)
        runs: dict[str, Callable[[], object]] = {}
        for what, at in folders.items():  # a dense file may be mapped, and not read before its weights are used
            runs[what] = lambda at=at: mf.load_model(at)
            runs[f"{what}, and reading each page of it"] = lambda at=at: touched(mf.load_model(at))
        found |= {f"load, {what}": timing.median for what, timing in in_turns(runs, 3).items()}
    dense = torch.randn(3072, 768).bfloat16() * (torch.rand(3072, 768) > SPARSITY)
    coding, parts = encode(dense, "bf16", "none")
    matrix = pack_matrix(dense, torch.bfloat16)
    reader = str(Path(__file__).parents[1] / "docs" / "packed_reader.py")
    names: dict[str, Any] = {"__name__": "reader"}
    exec(compile(Path(reader).read_text(), reader, "exec"), names)
    like = {"shape": coding.shape, "values": coding.values, "compress": coding.compress}
    rates: dict[str, Callable[[], object]] = {
        "multiflow": lambda: decode(coding, parts, kernels()),
        "multiflow without compiled kernels": lambda: decode(coding, parts),
        "the reader in the documents": lambda: names["unpack"](like, lambda part: parts[part].numpy().tobytes()),
        "the kernel, in memory": lambda: kernels().unpack(matrix.arguments, halves=True),
    }
    for what, timing in in_turns(rates, 20).items():
        found[f"GB/s, {what}"] = dense.nbytes / min(timing.seconds) / 1e9
    return found


def touched(model: nn.Module) -> list[float]:
    """Read one number of each page of 4 KB that the weights lie in."""
    return [parameter.detach().flatten()[::2048].float().sum().item() for parameter in model.parameters()]


def medians(runs: dict[str, Callable[[], object]], seconds: float, turns: int = 15) -> dict[str, float]:
    timed: dict[str, Timing] = in_turns(runs, turns, FLUSH, most=seconds)
    return {name: timing.median for name, timing in timed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "tower", "mlp", "load"])
    parser.add_argument("models", nargs="*", default=["blip-base"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begun = time.perf_counter()
    about = {**machine(), "kernels": LEVELS[kernels().level]}
    found: dict[str, dict[str, float]] = {}
    if given.what == "tower":
        found["ViT-B/16"] = tower(given.seconds)
    elif given.what == "mlp":
        found["MLPs"] = mlp(given.seconds)
    for name in given.models if given.what in ("step", "load") else ():
        found[name] = step(name, given.seconds) if given.what == "step" else load(name)
    known = json.loads(given.json.read_text()) if given.json.exists() else {}
    base = known.setdefault("base", {}).setdefault(about["kernels"], {})
    base[given.what] = {**base.get(given.what, {}), **found, "machine": about}
    given.json.write_text(json.dumps(known, indent=1) + "\n")
    print(json.dumps(found, indent=1), f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
