"""Every command that writes, where it cannot: a full disk, a read-only one, a folder of somebody else, little memory.

Exit code 2, one sentence that names the place or what is short, nothing half-written.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import multiflow as mf
from multiflow.cli import COMMANDS as mf_commands
from multiflow.cli import main
from multiflow.report import bench as bench_report
from multiflow.worlds.shapes import write
from tests import processes
from tests.bench.conftest import config
from tests.cli.conftest import files
from tests.conftest import Run
from tests.robust.commands import COMMANDS, READ_ALONE, Place, Setting

CAPABILITIES, WRITE_EVERYWHERE = 0x20080522, 1
"""Of Linux: the version of its interface, and the number of the right."""


def mounted(folder: Path, options: str) -> bool:
    """Mount a small file system; False where this user may not."""
    folder.mkdir(exist_ok=True)
    done = processes.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)
    return done.returncode == 0


@pytest.fixture(scope="module")
def setting(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """What the commands read: a model, data, a run with masks, a finished grid."""
    root = tmp_path_factory.mktemp("setting")
    world = write(root / "world", train=12, val=4, test=4, size=32)
    (root / "grid.yaml").write_text(yaml.safe_dump(config(tiny, world)))
    pairs = world / "pretrain" / "cc3m"
    prune = ["prune", str(tiny), "--data", str(pairs), "--sparsity", "0.5", "--batches", "1", "--batch-size", "4"]
    assert main([*prune, "--method", "multiflow", "--out", str(root / "pruned")]) == 0
    assert main(["bench", "run", str(root / "grid.yaml"), "--out", str(root / "grid"), "--device", "cpu"]) == 0
    return Setting(tiny, world, root / "pruned" / "mask-0.5.safetensors", root / "grid.yaml", root / "grid")


@pytest.fixture(params=["full", "read-only", "of somebody else"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A folder on a disk of its own that takes 4 kB, or nothing, or one where only somebody else may write."""
    disk, kind = tmp_path / "disk", request.param
    if kind == "of somebody else":
        if os.geteuid() != 0:
            pytest.skip("only root can give the right to write everywhere away")
        disk.mkdir(mode=0o755)
        os.chown(disk, 65534, 65534)
        with without_right_to_write_everywhere():
            yield Place(disk, kind)
        return
    if not mounted(disk, "size=4k" if kind == "full" else "size=1m,ro"):
        pytest.skip("only root may mount")
    yield Place(disk, kind)
    processes.run("umount", "-l", disk, check=True)


@contextmanager
def without_right_to_write_everywhere() -> Iterator[None]:
    """Take root's right to write in folders of others from this thread, and those that it starts, inside the block."""
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    had = sets[0]
    sets[0] = had & ~(1 << WRITE_EVERYWHERE)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = had
        assert libc.capset(header, sets) == 0


def is_whole(path: Path) -> bool:
    """Whether a small file that was written before the disk was full can be read to its end."""
    text = path.read_text(errors="replace")
    if path.suffix == ".jsonl":  # what a run says of itself grows line by line
        return all(json.loads(line) for line in text.splitlines())
    return path.suffix in (".json", ".yaml") and bool(yaml.safe_load(text))


# TensorBoard writes in a thread of its own, which says on standard error that it cannot
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_that_takes_no_more(run: Run, setting: Setting, place: Place, name: str):
    before = files(place.disk)
    said = run(*COMMANDS[name](setting, place.disk / "out"))
    assert said.code == 2, said
    assert "Traceback" not in said.err
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("multiflow: error: ")
    assert str(place.disk) in last or "space" in last.lower(), last
    left = [path for path in files(place.disk) if not path.endswith(tuple(place.may_stay))]
    assert {path for path in left if not is_whole(place.disk / path)} == set(before), "nothing half-written"


def test_every_command_of_the_program_is_tried():
    """One that is new has to be in one of the two lists; what writes has a field for the place."""
    tried = {COMMANDS[name](SOMEWHERE, Path("out"))[0] for name in COMMANDS}
    for name, command in mf_commands.items():
        settings, _ = command.load()
        writes = {"out", "save", "out_dir"} & {field.name for field in fields(settings)}
        assert (name.split()[0] in tried) == bool(writes), name
        assert (name in READ_ALONE) != bool(writes), name


SOMEWHERE = Setting(*[Path("somewhere")] * len(Setting._fields))
SHORTAGES = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("could not create a primitive"),
)
ALLOCATE: tuple[tuple[object, str], ...] = (
    (nn.functional, "linear"),
    (torch.Tensor, "masked_fill_"),
    (torch, "where"),
    (Image.Image, "save"),
    (bench_report, "write_report"),
)
"""What every command that writes calls at least one of."""
NARROW = ("prune-lobs", "apply", "finetune")
MEGABYTES = 64  # that are left to a command when everything is imported


@pytest.fixture(scope="module")
def forked(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of commands with ``NAME.json``, their exit code and what they said."""
    root = tmp_path_factory.mktemp("forked")
    bundled = mf.load_model("xvlm-shapes")
    mask = mf.prune(bundled, "magnitude-layer", sparsity=0.5).masks[0.5].save(root / "mask-0.5.safetensors")
    big = setting._replace(model=Path("xvlm-shapes"), mask=mask)
    orders = {}
    for name in NARROW:
        folder = root / f"narrow-{name}"
        folder.mkdir()
        orders[folder.name] = COMMANDS[name](big, folder / "out"), str(folder)
    for name, order in orders.items():
        with processes.fork(narrow, *order) as one:
            (root / f"{name}.json").write_text(json.dumps([one.end(), one.err.read_text()]))
    return root


def narrow(words: list[str], folder: str) -> None:
    """Run a command in a little more memory than there is in use."""
    os.chdir(folder)
    warnings.simplefilter("default")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEGABYTES * 2**20,) * 2)
    raise SystemExit(main(words))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_memory_that_ends_on_the_way(
    run: Run, setting: Setting, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    """What the allocator says comes at the second of the calls that need memory, or at the first if there is one."""
    error = SHORTAGES[list(COMMANDS).index(name) % len(SHORTAGES)]
    for allowed in (1, 0):
        calls = itertools.count()
        with monkeypatch.context() as patched:
            for home, function in ALLOCATE:
                patched.setattr(home, function, failing(getattr(home, function), calls, allowed, error))
            out = tmp_path / f"out{allowed}"
            said = run(*COMMANDS[name](setting, out))
        if said.code:
            break
    assert "Traceback" not in said.err
    assert said.code == 2, said
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("multiflow: error: ")
    assert "memory" in last
    if name == "bench run":  # cells that failed are told, and the others go on
        assert "start the same command again" in last
        assert all("memory" in path.read_text() for path in (out / "errors").iterdir())
        return
    left = [path for path in files(out) if not path.endswith(Place(out, "").may_stay)] if out.exists() else []
    assert {path for path in left if not is_whole(out / path)} == set(), "nothing half-written"


def failing(function: Callable[..., object], calls: Iterator[int], allowed: int, error: Exception) -> object:
    def call(*args: object, **options: object) -> object:
        if next(calls) >= allowed:
            raise error
        return function(*args, **options)

    return call


@pytest.mark.parametrize("name", NARROW)
def test_too_little_memory(forked: Path, name: str):
    code, said = json.loads((forked / f"narrow-{name}.json").read_text())
    if code == -signal.SIGABRT and "memory allocation of" in said:
        return  # the allocator of Rust, in tokenizers and safetensors, ends the process: the run goes on with --resume
    assert code in (0, 2), said
    assert "Traceback" not in said
    if code == 2:
        assert "memory" in said
        left = {Path(path).name for path in files(forked / f"narrow-{name}")}
        assert left <= {"calibration.safetensors", "run.json"}, "nothing but that with which it can go on"
