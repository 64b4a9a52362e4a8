"""Kills commands at random moments and lets them go on: ``python -m tests.robust.kill --kills 100 --seed 0``.

Each trial starts a command, kills it by SIGKILL or SIGTERM after a random time, resumes it, and so on until it ends.
What it leaves must be what a run without a kill leaves, byte by byte (but for times and places).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from multiflow.worlds.shapes import write
from tests.bench.conftest import config
from tests.conftest import save_tiny
from tests.robust.commands import Setting, finetune, prune

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
)
COSTS = ("/calibration", "/selection", "/finished")  # of records of a benchmark

STEPS = ("--set", "steps=3", "batches_per_step=2")
KILLED: dict[str, Callable[[Setting, Path], list[str]]] = {
    "prune multiflow": prune("multiflow"),
    "prune lobs": prune("lobs"),
    "prune snip": prune("snip"),
    "prune itersnip": prune("itersnip", *STEPS),
    "prune chita++": prune("chita++", *STEPS),
    "prune tamt": prune("tamt", "--set", "steps=6"),
    "finetune": finetune,
    "bench run": lambda given, out: ["bench", "run", str(given.config), "--out", str(out), "--device", "cpu"],
}


def call(words: list[str], after: float | None, how: signal.Signals) -> int | None:
    """Run a command; end it after some seconds. Return its exit code, None when it was killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "multiflow", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        out, _ = process.communicate(timeout=after or SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
        process.communicate()
        return None
    if process.returncode and b"already holds a finished run" in out:  # killed after its last file was written
        return 0
    if process.returncode:
        print(out.decode())
    return process.returncode


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


def trial(name: str, given: Setting, place: Path, chance: random.Random, whole: tuple[float, dict[str, str]]) -> int:
    """Kill a command until it has ended; return how many kills that were."""
    seconds, wanted = whole
    out, kills = place / f"killed-{chance.random()}", 0
    words = KILLED[name](given, out)
    while True:
        resume = ["--resume"] if kills and words[0] != "bench" and (out.exists() and any(out.iterdir())) else []
        after = chance.uniform(0.3, 1.0) * seconds if kills < 4 else None
        code = call([*words, *resume], after, chance.choice([signal.SIGKILL, signal.SIGTERM]))
        if code is None:
            kills += 1
        elif code:
            raise SystemExit(f"{name}: exit code {code} after {kills} kills, seed of the run is printed above")
        else:
            break
    found = left(out)
    if found != wanted:
        raise SystemExit(f"{name}: differs after {kills} kills in {set(found.items()) ^ set(wanted.items())}")
    shutil.rmtree(out)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(KILLED))
    options = parser.parse_args()
    chance, done, counts = random.Random(options.seed), 0, dict.fromkeys(options.only, 0)
    with TemporaryDirectory() as folder:
        place = Path(folder)
        model = save_tiny("xvlm", place / "tiny")
        world = write(place / "world", train=12, val=4, test=4, size=32)
        (place / "grid.yaml").write_text(yaml.safe_dump(config(model, world)))
        given = Setting(model, world, place / "pruned" / "mask-0.5.safetensors", place / "grid.yaml", place / "grid")
        assert call(KILLED["prune multiflow"](given, place / "pruned"), None, signal.SIGTERM) == 0
        whole = {}
        for name in options.only:
            begun = time.monotonic()
            assert call(KILLED[name](given, place / "whole" / name), None, signal.SIGTERM) == 0, name
            whole[name] = time.monotonic() - begun, left(place / "whole" / name)
        while done < options.kills:
            for name in options.only:
                kills = trial(name, given, place, chance, whole[name])
                counts[name] += kills
                done += kills
                print(f"{done} kills so far", flush=True)
        print(f"{done} kills, all runs as without: {', '.join(f'{name} {count}' for name, count in counts.items())}")


if __name__ == "__main__":
    main()
