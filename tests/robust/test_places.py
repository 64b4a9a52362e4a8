"""Every command that writes, where it cannot: a full disk, a read-only one, a folder of somebody else, little memory.

Exit code 2, one sentence that names the place or what is short, nothing half-written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import multiflow as mf
from multiflow.cli import main
from multiflow.worlds.shapes import write
from tests import processes
from tests.bench.conftest import config
from tests.cli.conftest import files
from tests.conftest import Run
from tests.robust.commands import COMMANDS, Place, Setting


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


@pytest.mark.parametrize("name", ["prune", "apply", "shapes"])
def test_a_folder_of_somebody_else(setting: Setting, tmp_path: Path, name: str):
    """In a process that has lost root's right to write everywhere."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("only root can give that right away")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    os.chown(folder, 65534, 65534)
    weak = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    command = [*weak, processes.PYTHON, "-m", "multiflow", *COMMANDS[name](setting, folder / "out")]
    done = processes.run(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "multiflow: error: " in done.stderr
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr
    assert files(folder) == []


@pytest.mark.parametrize("name", ["prune-lobs", "apply", "finetune"])
def test_too_little_memory(setting: Setting, tmp_path: Path, name: str):
    """The address space of the process is closed when everything is imported, but for 64 MB."""
    code = (
        "import resource, sys, torch, transformers, multiflow.cli, multiflow.cli.prune, multiflow.cli.apply;"
        "import multiflow.cli.finetune, multiflow as mf;"
        "mf.load_model(sys.argv[1]);"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 64 * 2**20,) * 2);"
        "sys.exit(multiflow.cli.main(sys.argv[2:]))"
    )
    bundled = mf.load_model("xvlm-shapes")
    mask = mf.prune(bundled, "magnitude-layer", sparsity=0.5).masks[0.5].save(tmp_path / "mask-0.5.safetensors")
    big = setting._replace(model=Path("xvlm-shapes"), mask=mask)
    args = COMMANDS[name](big, tmp_path / "out")
    done = processes.run(processes.PYTHON, "-c", code, setting.model, *args, cwd=tmp_path)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 2:
        assert "memory" in done.stderr
        left = {Path(path).name for path in files(tmp_path)} - {mask.name}
        assert left <= {"calibration.safetensors", "run.json"}, "nothing but that with which it can go on"
