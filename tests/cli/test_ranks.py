"""The command line in two processes that ``torchrun`` starts, against the same command in one."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import NamedTuple

import pytest

import multiflow as mf
from multiflow.base.parallel import world
from multiflow.cli.settings import own_device, processes
from tests.cli.conftest import Run
from tests.processes import LIMIT, ROOT, TWO_PROCESSES, start


class Two(NamedTuple):
    """What a command in two processes left."""

    code: int
    out: str
    err: str
    folder: Path


def in_two(*words: object, at: Path) -> AbstractContextManager[Popen[str]]:
    env = {"PYTHONPATH": str(ROOT / "src")}
    return start(*TWO_PROCESSES, *words, cwd=at, env=env, stdout=PIPE, stderr=PIPE)


def ended(process: Popen[str], folder: Path) -> Two:
    out, err = process.communicate(timeout=LIMIT)
    return Two(process.returncode, out, err, folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny: Path, pairs: Path) -> tuple[Two, Two]:
    """A run that goes well, and one whose second process has another seed."""
    prune = ("prune", tiny, "--data", pairs, "--method", "snip", "--batch-size", 4, "--batches", 5, "--device", "cpu")
    good, bad = (tmp_path_factory.mktemp(name) for name in ("good", "bad"))
    script = bad / "other_seed.py"
    script.write_text(
        "import os, sys\nfrom multiflow.cli import main\n"
        "sys.exit(main([*sys.argv[1:], '--seed', os.environ['RANK']]))\n"
    )
    with (
        in_two("-m", "multiflow", *prune, "--out", "run", at=good) as first,
        in_two(script, *prune, "--out", "run", at=bad) as second,
    ):
        return ended(first, good), ended(second, bad)


def test_masks_are_those_of_one_process(
    both: tuple[Two, Two], tiny: Path, pairs: Path, run: Run, tmp_path: Path
) -> None:
    good = both[0]
    assert good.code == 0, good.err
    ran = run("prune", tiny, "--data", pairs, "--method", "snip", "--batch-size", 4, "--batches", 5, "--out", "run")
    assert ran.code == 0
    folders = good.folder / "run", tmp_path / "run"
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith(".safetensors"):
            two, one = (mf.Masks.load(folder / name) for folder in folders)
            for layer, mask in one.items():
                assert int((mask != two[layer]).sum()) <= 1, layer
    two, one = (json.loads((folder / "result.json").read_text()) for folder in folders)
    assert two["run"] == {**one["run"], "processes": 2}
    assert two["data"] == one["data"]
    assert two["data"]["samples"] == 20


def test_the_first_process_alone_prints(both: tuple[Two, Two], run: Run) -> None:
    good = both[0]
    assert good.out == run("show", good.folder / "run").out.replace(f"in {good.folder}/run:", "in run:")
    lines = [line for line in good.err.splitlines() if line.startswith("calibrate")]
    assert len(lines) == len(set(lines)) >= 1
    assert "warning" not in good.err


def test_other_settings_are_one_sentence_and_leave_nothing(both: tuple[Two, Two]) -> None:
    bad = both[1]
    assert bad.code != 0
    assert bad.out == ""
    said = [line for line in bad.err.splitlines() if "error:" in line and "multiflow" in line]
    assert said == [
        "multiflow: error: the 2 processes of this run have different settings: "
        "seed (0 on process 0, 1 on process 1); start all of them with the same ones"
    ]
    assert "exitcode  : 2" in bad.err
    assert not (bad.folder / "run").exists()


def test_alone_a_process_keeps_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")  # set by other launchers too
    with processes("cpu") as device:
        assert (device, world()) == ("cpu", 1)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert [own_device(name, 1, 2) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert [str(device) for device in chosen] == ["cuda:1", "cuda:1"]
    with pytest.raises(mf.MultiflowError, match="--device cuda:0 is one GPU, and there are 2 processes"):
        own_device("cuda:0", 0, 2)
    with pytest.raises(mf.MultiflowError, match="device 'cuda:2' is not on this machine"):
        own_device("cuda", 2, 3)


def test_a_blip_split_between_two_processes_is_fine_tuned_with_its_zeros_and_resumed_when_finished(
    tiny_blip: Path, world: Path, tmp_path: Path
) -> None:
    mask = mf.prune(mf.load_model(tiny_blip), "magnitude", 0.5).masks[0.5].save(tmp_path / "mask.safetensors")
    small = ("--preset", "shapes", "--steps", 2, "--batch-size", 4, "--limit", 4, "--precision", "fp32")
    command = ("-m", "multiflow", "finetune", "retrieval", tiny_blip, "--mask", mask, "--data", world / "coco", *small)
    runs = []
    for more in ((), ("--resume",)):
        with in_two(*command, "--shard", "--out", "run", *more, at=tmp_path) as process:
            runs.append(ended(process, tmp_path))
    assert [run.code for run in runs] == [0, 0], runs[-1].err
    assert runs[0].out == runs[1].out != ""
    stored, masks = mf.load_model(tmp_path / "run/model"), mf.Masks.load(tmp_path / "run/mask.safetensors")
    assert all(not stored.get_submodule(name).weight[~mask].any() for name, mask in masks.items())
