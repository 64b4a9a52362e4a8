"""The same model, data and sparsity for this library and for others: seconds, peak memory, errors, exactness of counts.

A decoder of the Llama type with 54 M prunable weights, built from a config, random weights, float32; 32 sequences of
128 random tokens; 75 % zeros among the linear layers of the blocks. Others are torch's `prune.global_unstructured`,
`nncf.prune`, and Wanda and SparseGPT of llm-compressor. Each contestant runs in a process of its own, the other
libraries in environments of their own under ``--work``, which are made there on the first run, with this library's
version of torch; one that does not install is named with the reason.

All errors are measured here, from the weights that a contestant leaves: the median over layers of
``tr (V - W) H (V - W)' / tr W H W'`` with H the second moment of the dense model's inputs, and the relative error of
the last hidden states on sequences that none of them saw. llm-compressor fits each block on the outputs of the blocks
pruned before it, this library every layer on the inputs of the dense model; the second error is the fairer one.

    python benchmarks/peers.py --work runs/peers --json benchmarks/results/peers.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

SPARSITY = 0.75
CONFIG = {
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
SEQUENCES, LENGTH, BATCH = 32, 128, 8
TORCH = f"torch=={torch.__version__.partition('+')[0]}"
PACKAGES: dict[str, list[str]] = {"nncf": ["nncf", "transformers", "torchao"], "llmcompressor": ["llmcompressor"]}
"""Environment -> what is installed in it."""


def load_model(work: Path) -> Any:
    """Return the dense model."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(str(work / "model"), dtype=torch.float32).eval()


def prunable(model: Any) -> dict[str, torch.nn.Linear]:
    """Return the linear layers of the blocks by name."""
    linear = torch.nn.Linear
    return {name: m for name, m in model.named_modules() if isinstance(m, linear) and name.startswith("model.layers.")}


def ours(method: str) -> Callable[[Any, list[dict[str, torch.Tensor]]], Any]:
    """Return how this library prunes."""

    def run(model: Any, batches: list[dict[str, torch.Tensor]]) -> Any:
        import multiflow as mf

        adapter = mf.adapter_for(model, exclude="lm_head")
        result = mf.prune(model, method, SPARSITY, batches, adapter=adapter)
        result.apply_(model, SPARSITY)
        return model

    return run


def ours_streamed(method: str) -> Callable[[Any, list[dict[str, torch.Tensor]]], Any]:
    """Return how this library prunes block by block, on what the pruned blocks before give, as llm-compressor does."""

    def run(model: Any, batches: list[dict[str, torch.Tensor]]) -> Any:
        import multiflow as mf

        with TemporaryDirectory() as place:
            streamed = mf.open_streamed(model.config._name_or_path, Path(place) / "offload")
            adapter = mf.adapter_for(streamed, exclude="lm_head")
            how = {"adapter": adapter, "folder": Path(place) / "run", "sequential": True}
            result = mf.prune_streamed(streamed, method, SPARSITY, batches, **how)
            result.apply_(model, SPARSITY)
        return model

    return run


def torch_global(model: Any, batches: list[dict[str, torch.Tensor]]) -> Any:
    """Global magnitude pruning by torch."""
    from torch.nn.utils import prune

    layers = [(module, "weight") for module in prunable(model).values()]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=SPARSITY)
    for module, name in layers:
        prune.remove(module, name)
    return model


def nncf(mode: str) -> Callable[[Any, list[dict[str, torch.Tensor]]], Any]:
    """Return how NNCF prunes."""

    def run(model: Any, batches: list[dict[str, torch.Tensor]]) -> Any:
        import nncf
        from nncf.parameters import PruneMode, StripFormat

        scope = nncf.IgnoredScope(patterns=[".*embed_tokens.*", ".*lm_head.*", ".*rotary.*"], validate=False)
        model.config.use_cache = False
        example = {"input_ids": batches[0]["input_ids"][:1]}
        pruned = nncf.prune(model, mode=PruneMode[mode], ratio=SPARSITY, ignored_scope=scope, examples_inputs=example)
        return nncf.strip(pruned, do_copy=False, strip_format=StripFormat.IN_PLACE)

    return run


def llmcompressor(name: str) -> Callable[[Any, list[dict[str, torch.Tensor]]], Any]:
    """Return how llm-compressor prunes."""

    def run(model: Any, batches: list[dict[str, torch.Tensor]]) -> Any:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
        from tokenizers import Tokenizer, models
        from torch.utils.data import DataLoader
        from transformers import PreTrainedTokenizerFast

        kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[name]
        recipe = kind(sparsity=SPARSITY, mask_structure="0:0", targets=["Linear"], ignore=["re:.*lm_head"])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), pad_token="a"
        )
        data = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        return oneshot(
            model=model,
            processor=tokenizer,
            dataset=data,
            recipe=recipe,
            num_calibration_samples=SEQUENCES,
            batch_size=BATCH,
            max_seq_length=LENGTH,
        )

    return run


CONTESTANTS: dict[str, tuple[str, Callable[[Any, list[dict[str, torch.Tensor]]], Any]]] = {
    "ours: wanda": ("", ours("wanda")),
    "llm-compressor: Wanda": ("llmcompressor", llmcompressor("wanda")),
    "ours: sparsegpt": ("", ours("sparsegpt")),
    "llm-compressor: SparseGPT": ("llmcompressor", llmcompressor("sparsegpt")),
    "ours: magnitude": ("", ours("magnitude")),
    "torch: global_unstructured": ("", torch_global),
    "nncf: global magnitude": ("nncf", nncf("UNSTRUCTURED_MAGNITUDE_GLOBAL")),
    "ours: magnitude-layer": ("", ours("magnitude-layer")),
    "nncf: local magnitude": ("nncf", nncf("UNSTRUCTURED_MAGNITUDE_LOCAL")),
    "ours: exchange": ("", ours("exchange")),
    "ours: sparsegpt, block by block": ("", ours_streamed("sparsegpt")),
}
"""Name -> its environment ("" for this one) and how it prunes a model in place."""


def prepare(work: Path) -> None:
    """Write the model and the tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(str(work / "model"))
    generator = torch.Generator().manual_seed(0)
    shape = (2 * SEQUENCES, LENGTH)
    torch.save(torch.randint(0, CONFIG["vocab_size"], shape, generator=generator), work / "tokens.pt")


def batches_of(work: Path, held_out: bool = False) -> list[dict[str, torch.Tensor]]:
    """Return the calibration batches, or those that nobody saw."""
    tokens = torch.load(work / "tokens.pt", weights_only=True)
    chosen = tokens[SEQUENCES:] if held_out else tokens[:SEQUENCES]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in chosen.split(BATCH)]


def environment(work: Path, name: str) -> Path:
    """Return the Python of an environment, which is made if it is not there yet."""
    if not name:
        return Path(sys.executable)
    folder = work / f"env-{name}"
    python = folder / "bin" / "python"
    done = folder / ".ready"
    if not done.exists():
        print(f"makes an environment for {name}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (folder / "constraints.txt").write_text(TORCH + "\n")
        own = {**os.environ, "PIP_CONSTRAINT": str(folder / "constraints.txt")}
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[name]], check=True, env=own)
        done.touch()
    return python


def run_one(work: Path, name: str, out: Path) -> dict[str, Any]:
    """Prune in this process; write the weights, and return what it cost beyond the model and a forward of it."""
    model, batches = load_model(work), batches_of(work)
    with torch.no_grad():
        model(**batches[0])
    before = peak_mb()
    begun, busy = time.perf_counter(), time.process_time()
    pruned = CONTESTANTS[name][1](model, batches)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - busy
    after = peak_mb()
    torch.save({key: m.weight.detach().clone() for key, m in prunable(pruned).items()}, out)
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": after - before, "before_mb": before}


def peak_mb() -> float:
    """Largest memory of this program so far; `getrusage` would count what started it as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


@torch.no_grad()
def quality(work: Path, path: Path) -> dict[str, Any]:
    """Measure what pruned weights do: errors of layers and of the model, and counts of zeros."""
    import multiflow as mf

    model = load_model(work)
    adapter = mf.adapter_for(model, exclude="lm_head")
    place = work / "moments.safetensors"
    if place.exists():
        stats = mf.Stats.load(place)
    else:
        stats = mf.calibrate(model, batches_of(work), adapter=adapter, statistics=["input_moment"])
        stats.save(place)
    found = torch.load(path, weights_only=True)
    layers = prunable(model)
    held = batches_of(work, held_out=True)
    dense = [model.model(**batch).last_hidden_state for batch in held]
    errors, zeros, exact, size = [], 0, 0, 0
    for name, module in layers.items():
        weight, new = module.weight, found[name]
        moment = stats.get_layer("input_moment", name).float()
        away = new - weight
        errors.append(float(((away @ moment) * away).sum() / ((weight @ moment) * weight).sum()))
        dropped = int((new == 0).sum())
        zeros += dropped
        size += new.numel()
        exact += dropped == round(SPARSITY * new.numel())
        module.weight.copy_(found[name])
    sparse = [model.model(**batch).last_hidden_state for batch in held]
    off = sum(float((a - b).square().sum()) for a, b in zip(sparse, dense, strict=True))
    return {
        "layer_error": median(errors),
        "model_error": off / sum(float(a.square().sum()) for a in dense),
        "zeros": zeros,
        "asked": round(SPARSITY * size),
        "layers_exact": f"{exact} of {len(layers)}",
    }


def place_of(work: Path, name: str) -> Path:
    """Return where the weights of a contestant lie."""
    return work / f"weights-{list(CONTESTANTS).index(name)}.pt"


def contest(work: Path, name: str, threads: int) -> dict[str, Any]:
    """Run a contestant in its process; return what it took, or why it did not end."""
    try:
        python = environment(work, CONTESTANTS[name][0])
        command = [str(python), __file__, "--work", str(work), "--threads", str(threads), "--one", name]
        limits = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **limits}, check=False)
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["no word"])[-1]}
        return {**json.loads(done.stdout.splitlines()[-1]), "load": round(os.getloadavg()[0], 1)}
    except subprocess.CalledProcessError as error:
        return {"failed": f"does not install: {error}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and the environments")
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS), metavar="NAME", help="of the contestants")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to which the figures are added")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print("\n" + json.dumps(run_one(args.work, args.one, place_of(args.work, args.one))))
        return
    if not (args.work / "tokens.pt").exists():
        prepare(args.work)
    log = args.work / "runs.json"  # what has run before is not run again
    found: dict[str, Any] = json.loads(log.read_text()) if log.exists() else {}
    for name in args.only:
        if name not in found or "failed" in found[name]:
            found[name] = contest(args.work, name, args.threads)
            print(name, json.dumps(found[name]), flush=True)
            log.write_text(json.dumps(found, indent=1))
    for name in args.only:
        if "failed" not in found[name] and "layer_error" not in found[name]:
            found[name] |= quality(args.work, place_of(args.work, name))
            print(name, json.dumps(found[name]), flush=True)
            log.write_text(json.dumps(found, indent=1))
    if args.json:
        setting = {"config": CONFIG, "sparsity": SPARSITY, "sequences": SEQUENCES, "length": LENGTH}
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": TORCH}
        ordered = {key: found[key] for key in CONTESTANTS if key in found}
        whole = {**setting, "threads": args.threads, "machine": machine, "contestants": ordered}
        args.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
