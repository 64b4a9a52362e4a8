"""Kills commands at random moments and lets them go on: ``python -m tests.robust.kill --kills 100 --seed 0``.

Each trial starts a command, kills it by SIGKILL or SIGTERM at a random moment, resumes it, and so on until it ends.
What it leaves must be what a run without a kill leaves, byte by byte (but for times and places). Four moments of five
lie behind the one at which the command has made its folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import yaml

from multiflow.cli import main
from multiflow.worlds.shapes import write
from tests.bench.conftest import config
from tests.conftest import save_tiny
from tests.robust.commands import Setting, finetune, pairs, prune

SECONDS = 600  # of one command without a kill, at most
TIMES = (
    "checksum",
    "seconds",
    "timings",
    "time",
    "created",
    "rate",
    "host",
    "peak",
    "memory",
    "machine",
    "when",
    "started",
    "forward",
)
COSTS = ("/calibration", "/selection", "/finished")  # of records of a benchmark


def recover(how: str, *more: str) -> Callable[[Setting, Path], list[str]]:
    def words(given: Setting, out: Path) -> list[str]:
        few = ["--mask", str(given.mask), "--how", how, "--epochs", "2", "--device", "cpu"]
        return ["recover", str(given.model), *pairs(given), *few, *more, "--out", str(out)]

    return words


STEPS = ("--set", "steps=3", "batches_per_step=2")
KILLED: dict[str, Callable[[Setting, Path], list[str]]] = {
    "prune multiflow": prune("multiflow"),
    "prune lobs": prune("lobs"),
    "prune snip": prune("snip"),
    "prune itersnip": prune("itersnip", *STEPS),
    "prune chita++": prune("chita++", *STEPS),
    "prune tamt": prune("tamt", "--set", "steps=6"),
    "prune sparsegpt": prune("sparsegpt", "--allocation", "owl"),
    "prune streamed": prune("wanda", "--stream"),
    "prune sequential": prune("alps", "--stream", "--sequential", "--set", "steps=5"),
    "recover scale": recover("scale"),
    "recover blocks": recover("blocks"),
    "recover distill": recover("distill"),
    "recover lora, then blocks": recover("lora", "--then", "blocks"),
    "finetune": finetune,
    "bench run": lambda given, out: ["bench", "run", str(given.config), "--out", str(out), "--device", "cpu"],
}


class Whole(NamedTuple):
    """A run without a kill: seconds of computing until its folder was there, and until its end; what it left."""

    begun: float
    seconds: float
    left: dict[str, str]


def call(words: list[str], after: float | None, how: signal.Signals, out: Path) -> tuple[int | None, float, float]:
    """Run a command in a process forked off this one, in which everything is imported; end it after some seconds.

    Seconds are those that it computes, not those on the clock: so moments are the same ones beside other work. Return
    its exit code (None when it was killed), the seconds until its folder was there, and those until its end.
    """
    said = out.parent / "said.txt"
    child = os.fork()
    if child == 0:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os._exit(main(words))
    start, begun, spent = time.monotonic(), None, 0.0
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        spent = int(Path(f"/proc/{child}/schedstat").read_text().split()[0]) / 1e9
        if begun is None and out.exists():
            begun = spent
        if (after is not None and spent > after) or time.monotonic() - start > SECONDS:
            os.kill(child, how)
            ended = os.wait4(child, 0)
            break
        time.sleep(0.002)
    code, used = os.waitstatus_to_exitcode(ended[1]), ended[2]
    if after is not None and code == -how:
        return None, 0, 0
    if code and b"already holds a finished run" in said.read_bytes():  # killed after its last file was written
        code = 0
    if code:
        print(said.read_text())
    return code, begun or 0.0, used.ru_utime + used.ru_stime


def left(folder: Path) -> dict[str, str]:
    """Hash what a run left, without what differs from run to run: logs, locks, checkpoints, times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or any(
            part in name for part in ("lock", "tensorboard", "metrics.jsonl", "checkpoint", "log", "tfevents")
        ):
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            data = json.dumps([list(without_times(json.loads(line))) for line in chunks(path)], sort_keys=True).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def chunks(path: Path) -> list[str]:
    text = path.read_text()
    return sorted(text.splitlines()) if path.suffix == ".jsonl" else [text]


def without_times(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value with their paths, but for times, places and what is computed of them."""
    if name in COSTS or any(word in name.lower() for word in (*TIMES, "out", "folder", "path", "git", "revision")):
        return
    if isinstance(value, dict):
        for key in sorted(value):
            yield from without_times(value[key], f"{name}/{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from without_times(item, f"{name}/{number}")
    else:
        yield name, value


def undisturbed(words: list[str], out: Path) -> Whole:
    """Run a command to its end."""
    code, begun, seconds = call(words, None, signal.SIGTERM, out)
    assert code == 0, words
    return Whole(begun, seconds, left(out))


def trial(name: str, given: Setting, place: Path, chance: random.Random, whole: Whole) -> Counter[str]:
    """Kill a command until it has ended; return how many kills that were, by signal, and how many in its work."""
    out, kills = place / f"killed-{chance.random()}", Counter[str]()
    words = KILLED[name](given, out)
    while True:
        resume = ["--resume"] if words[0] != "bench" and out.exists() and any(out.iterdir()) else []
        how = chance.choice([signal.SIGKILL, signal.SIGTERM])
        after = chance.uniform(whole.begun if chance.random() < 0.8 else 0, whole.seconds)
        code, _, _ = call([*words, *resume], after if kills["kills"] < 4 else None, how, out)
        if code is None:
            kills += Counter(["kills", how.name, *(["in its work"] if out.exists() and any(out.iterdir()) else [])])
        elif code:
            raise SystemExit(f"{name}: exit code {code} after {dict(kills)}, seed of the run is printed above")
        else:
            break
    found = left(out)
    if found != whole.left:
        wrong = set(found.items()) ^ set(whole.left.items())
        kept = shutil.copytree(
            out, Path(tempfile.gettempdir()) / f"killed-{name.replace(' ', '-')}", dirs_exist_ok=True
        )
        raise SystemExit(f"{name}: differs after {dict(kills)} in {wrong}; it lies in {kept}")
    shutil.rmtree(out)
    return kills


def run_trials() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(KILLED))
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    chance, done, counts = random.Random(options.seed), Counter[str](), Counter[str]()
    print(f"seed {options.seed}", flush=True)
    with TemporaryDirectory() as folder:
        place = Path(folder)
        model = save_tiny("xvlm", place / "tiny")
        world = write(place / "world", train=12, val=4, test=4, size=32)
        (place / "grid.yaml").write_text(yaml.safe_dump(config(model, world)))
        given = Setting(model, world, place / "pruned" / "mask-0.5.safetensors", place / "grid.yaml", place / "grid")
        (place / "whole").mkdir()
        assert main(KILLED["prune multiflow"](given, place / "pruned")) == 0  # imports what all the others need
        whole = {}
        for name in options.only:
            whole[name] = undisturbed(KILLED[name](given, place / "whole" / name), place / "whole" / name)
            print(f"{name}: {whole[name].begun:.2f} and {whole[name].seconds:.2f} s without a kill", flush=True)
        while done["kills"] < options.kills:
            for name in options.only:
                kills = trial(name, given, place, chance, whole[name])
                counts[name] += kills["kills"]
                done += kills
                print(f"{dict(done)} so far, last of '{name}'", flush=True)
        print(f"{dict(done)}, all runs as without: {', '.join(f'{name} {count}' for name, count in counts.items())}")


if __name__ == "__main__":
    run_trials()
