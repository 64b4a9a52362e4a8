"""Every command that writes, where it cannot: a full disk, a read-only one, a folder of somebody else, little memory.

Exit code 2, one sentence that names the place or what is short, nothing half-written.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import multiflow as mf
from multiflow.cli import COMMANDS as mf_commands
from multiflow.cli import main
from multiflow.worlds.shapes import write
from tests import processes
from tests.bench.conftest import config
from tests.cli.conftest import files
from tests.conftest import Run
from tests.robust.commands import COMMANDS, READ_ALONE, Place, Setting


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


@pytest.fixture(params=["full", "read-only"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A folder on a disk of its own that takes 4 kB, or nothing."""
    disk, kind = tmp_path / "disk", request.param
    if not mounted(disk, "size=4k" if kind == "full" else "size=1m,ro"):
        pytest.skip("only root may mount")
    yield Place(disk, kind)
    processes.run("umount", "-l", disk, check=True)


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
THEIRS = ("prune", "apply", "shapes")
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
    for name in THEIRS:
        folder = root / f"theirs-{name}"
        folder.mkdir(mode=0o755)
        if is_root():
            os.chown(folder, 65534, 65534)
        orders[folder.name] = COMMANDS[name](setting, folder / "out"), str(root), None
    for name in NARROW:
        folder = root / f"narrow-{name}"
        folder.mkdir()
        orders[folder.name] = COMMANDS[name](big, folder / "out"), str(folder), MEGABYTES
    for name, order in orders.items():
        with processes.fork(narrow, *order) as one:
            (root / f"{name}.json").write_text(json.dumps([one.end(), one.err.read_text()]))
    return root


def narrow(words: list[str], folder: str, megabytes: int | None) -> None:
    """Run a command without root's right to write everywhere, in so much memory more than there is in use."""
    os.chdir(folder)
    warnings.simplefilter("default")
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, sets) == 0
    for number in range(3):  # effective, permitted, inheritable
        sets[number] &= ~DAC_OVERRIDE
    assert libc.capset(header, sets) == 0
    if megabytes is not None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20,) * 2)
    raise SystemExit(main(words))


CAPABILITIES, DAC_OVERRIDE = 0x20080522, 1 << 1  # of Linux: the version of its sets, and the right


def is_root() -> bool:
    return os.geteuid() == 0


@pytest.mark.skipif(not is_root(), reason="only root can give that right away")
@pytest.mark.parametrize("name", THEIRS)
def test_a_folder_of_somebody_else(forked: Path, name: str):
    """In a process that has lost root's right to write everywhere."""
    code, said = json.loads((forked / f"theirs-{name}.json").read_text())
    folder = forked / f"theirs-{name}"
    assert code == 2, said
    assert "multiflow: error: " in said
    assert str(folder) in said
    assert "Traceback" not in said
    assert files(folder) == []


@pytest.mark.parametrize("name", NARROW)
def test_too_little_memory(forked: Path, name: str):
    code, said = json.loads((forked / f"narrow-{name}.json").read_text())
    assert code in (0, 2), said
    assert "Traceback" not in said
    if code == 2:
        assert "memory" in said
        left = {Path(path).name for path in files(forked / f"narrow-{name}")}
        assert left <= {"calibration.safetensors", "run.json"}, "nothing but that with which it can go on"
