"""Prune a LLaVA-type model larger than memory: `python benchmarks/streaming.py`.

1. Random-weight LLaVAs of more than 2 billion parameters in bfloat16 are pruned by Wanda and by `lobs` (narrower
   blocks, and more of them: what it takes grows with the width of inputs) at two sparsities, streamed, in a process of
   its own that is held to a quarter of the model's size plus 1.5 GB: the kernel refuses address space beyond that
   (`ulimit -v`), and the peak of resident memory (VmHWM: all of its memory, mapped files included) must stay below it
   too. The run of `lobs` is killed (SIGKILL) on its way and goes on.
2. On a small sibling the same runs are timed streamed and in memory, opening included, and masks and weights compared
   bit for bit.

Figures go to `benchmarks/results/streaming.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SPARSITIES = [0.5, 0.6]
SIZES: dict[str, dict[str, int]] = {  # language model; its vision tower is small
    "2B": {"hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 48, "num_attention_heads": 16},
    "2B-narrow": {"hidden_size": 768, "intermediate_size": 1024, "num_hidden_layers": 340, "num_attention_heads": 8},
    "sibling": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8},
}
VISION = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
WORDS, PATCH, SIDE, TEXT = 32000, 14, 112, 32
MANY_WORDS = {"2B-narrow": 256000}  # as language models of today have them
FEW = {"lobs": {"rounds": 2, "iterations": 1}}
SO_FAR = "so-far.jsonl"
LIMIT = 1.5e9  # bytes beside a quarter of the model


def build(size: str, folder: Path) -> int:
    """Write a model with random weights; return the bytes of its weights."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    words = MANY_WORDS.get(size, WORDS)
    text = LlamaConfig(vocab_size=words, **SIZES[size], num_key_value_heads=SIZES[size]["num_attention_heads"])
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **VISION)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=WORDS - 1)
    torch.manual_seed(0)
    noise = torch.randn(1 << 24).bfloat16()
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    begin = 0
    with torch.no_grad():
        for parameter in model.parameters():  # slices of one long noise: drawing billions of numbers takes minutes
            begin = (begin + 7919) % (len(noise) // 2)
            flat, scale = parameter.view(-1), parameter.shape[-1] ** -0.5
            for at in range(0, len(flat), len(noise) // 2):
                part = flat[at : at + len(noise) // 2]
                part.copy_(noise[begin : begin + len(part)] * (scale if parameter.dim() > 1 else 0.1))
            if parameter.dim() == 1:
                parameter += 1
    model.save_pretrained(folder, max_shard_size="500MB")
    return sum(parameter.nbytes for parameter in model.parameters())


def make_batches(count: int, rows: int) -> list[dict[str, Any]]:
    """Random images and texts, the text of every second row shorter."""
    import torch

    generator = torch.Generator().manual_seed(1)
    image = (SIDE // PATCH) ** 2
    batches = []
    for _ in range(count):
        ids = torch.randint(3, WORDS - 1, (rows, image + TEXT), generator=generator)
        ids[:, :image] = WORDS - 1
        mask = torch.ones_like(ids)
        mask[::2, -TEXT // 2 :] = 0
        pixels = torch.randn(rows, 3, SIDE, SIDE, generator=generator).bfloat16()
        batches.append({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
    return batches


def prune(how: str, method: str, folder: Path, out: Path, count: int, rows: int, most: int) -> dict[str, Any]:
    """Prune in this process, of at most so many bytes (0 = any number); return seconds, peak and what was dropped."""
    import multiflow as mf
    from multiflow.families.opening import quiet_transformers

    if most:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    batches, few = make_batches(count, rows), FEW.get(method, {})
    before, begun = peak(), time.perf_counter()
    with quiet_transformers():
        if how == "streamed":
            model = mf.open_streamed(folder, out / "offload")
            opened = time.perf_counter()
            told = journal(out / SO_FAR, begun)
            result = mf.prune_streamed(model, method, SPARSITIES, batches, folder=out / "run", progress=told, **few)
        else:
            model = mf.load_model(folder)
            opened = time.perf_counter()
            result = mf.prune(model, method, SPARSITIES, batches, **few)
            result.save(out / "run")
    ended = time.perf_counter()
    timings = {"open": opened - begun, "prune": ended - opened, **{f"of it {k}": v for k, v in result.timings.items()}}
    size, dropped = result.masks[SPARSITIES[0]].layout.size, {}
    for sparsity, masks in result.masks.items():
        dropped[str(sparsity)] = masks.layout.size - sum(int(mask.sum()) for mask in masks.values())
        assert dropped[str(sparsity)] == sum(round(sparsity * layer.size) for layer in masks.layout.layers), dropped
        for name, mask in masks.items() if result.weights else ():  # what is dropped is zero in the weights written
            assert not result.weights[sparsity][name][~mask].any(), name
    found = {"layers": len(result.masks[SPARSITIES[0]].layout), "prunable": size, "dropped": dropped}
    spent = {"wall": time.perf_counter() - begun, "cpu": time.process_time()}
    return {"seconds": timings, "peak": peak(), "peak_of_imports": before, **spent, **found}


def journal(place: Path, begun: float) -> Callable[[str, int, int], None]:
    """Note after each block what this process has taken so far: a run that is killed leaves that behind."""

    def note(what: str, done: int, total: int) -> None:
        spent = {"wall": time.perf_counter() - begun, "cpu": time.process_time()}
        with place.open("a") as file:
            file.write(json.dumps({"process": os.getpid(), "blocks": done, "peak": peak(), **spent}) + "\n")

    return note


def peak() -> int:
    """The peak of this process's resident memory so far, in bytes: VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def alone(*arguments: object) -> dict[str, Any]:
    """Run a part of this script in a process of its own; return what it prints."""
    ran = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(ran.stdout.splitlines()[-1])


def kill_after(blocks: int, place: Path, arguments: list[object]) -> None:
    """Start a part of this script, and kill it once so many blocks are over."""
    with subprocess.Popen([sys.executable, __file__, *map(str, arguments)]) as process:
        while not place.is_file() or read_lines(place)[-1]["blocks"] < blocks:
            time.sleep(1)
            assert process.poll() is None, f"it ended by itself: {process.returncode}"
        process.kill()


def read_lines(place: Path) -> list[dict[str, Any]]:
    """Read what `journal` noted."""
    return [json.loads(line) for line in place.read_text().splitlines()]


def large(
    size: str, method: str, work: Path, samples: int, killed: int = 0, *, goes_on: bool = False
) -> dict[str, Any]:
    """Prune a large model, streamed; kill the run when so many blocks are over (0 = not), and let it go on.

    With ``goes_on`` the run in the folder, which was killed from outside, is gone on with.
    """
    folder, out = work / size, work / f"{size}-{method}"
    held = alone("build", size, folder)["bytes"] if not folder.exists() else sum(
        path.stat().st_size for path in folder.glob("*.safetensors")
    )  # fmt: skip
    limit = held / 4 + LIMIT
    arguments: list[object] = ["prune", "streamed", method, folder, out, samples, 1, int(limit)]
    if not goes_on:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if killed:
            kill_after(killed, out / SO_FAR, arguments)
    found = alone(*arguments)
    last = {of["process"]: of for of in read_lines(out / SO_FAR)}  # of each process its last line
    before = list(last.values())[:-1]
    totals = {name: found[name] + sum(of[name] for of in before) for name in ("wall", "cpu")}
    found |= {"processes": len(last), "peak": max(found["peak"], *(of["peak"] for of in before), 0), **totals}
    assert found["peak"] <= limit, (found["peak"], limit)
    return {"model": size, "method": method, "bytes": held, "limit": limit, "samples": samples, **found}


def sibling(method: str, work: Path, repeats: int) -> dict[str, Any]:
    """Prune the small sibling both ways, in turn, and compare what comes of it."""
    import torch

    import multiflow as mf

    folder, runs = work / "sibling", {"streamed": [], "memory": []}
    if not folder.exists():
        alone("build", "sibling", folder)
    for _ in range(repeats):
        for how in runs:
            out = work / f"sibling-{method}-{how}"
            shutil.rmtree(out, ignore_errors=True)
            runs[how].append(alone("prune", how, method, folder, out, 4, 4, 0))
    results = [mf.Result.load(work / f"sibling-{method}-{how}" / "run") for how in runs]
    for sparsity in SPARSITIES:
        assert results[0].masks[sparsity] == results[1].masks[sparsity]
        for name, weight in (results[1].weights or {}).get(sparsity, {}).items():
            assert torch.equal(results[0].weights[sparsity][name], weight)
    totals = {how: [run["seconds"]["open"] + run["seconds"]["prune"] for run in of] for how, of in runs.items()}
    ratio = statistics.median(a / b for a, b in zip(totals["streamed"], totals["memory"], strict=True))
    return {"method": method, "seconds": totals, "ratio": ratio, "same_bits": True, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=None, help="folder for the models (default: a temporary one)")
    parser.add_argument("--only", nargs="*", default=["sibling", "2B", "2B-narrow"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--go-on", action="store_true", help="go on with large runs in --work that were killed")
    settings = parser.parse_args()
    place = HERE / "results" / "streaming.json"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = settings.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if "sibling" in settings.only:
            found["sibling"] = [sibling(method, work, settings.repeats) for method in ("wanda", "lobs")]
        if "2B" in settings.only:
            found["wanda"] = large("2B", "wanda", work, 4, goes_on=settings.go_on)
        if "2B-narrow" in settings.only:
            found["lobs"] = large("2B-narrow", "lobs", work, 2, killed=60, goes_on=settings.go_on)
        found = (
            json.loads(place.read_text()) if place.is_file() else {}
        ) | found  # other parts may run beside this one
        place.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["build"]:
        print(json.dumps({"bytes": build(sys.argv[2], Path(sys.argv[3]))}))
    elif sys.argv[1:2] == ["prune"]:
        how, method, folder, out, *numbers = sys.argv[2:]
        print(json.dumps(prune(how, method, Path(folder), Path(out), *map(int, numbers))))
    else:
        main()
