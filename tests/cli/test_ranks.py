"""The command line in two processes that ``torchrun`` starts, against the same command in one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import multiflow as mf
from multiflow.base.parallel import world
from multiflow.cli.settings import own_device, processes
from tests.cli.conftest import Run
from tests.cli.ranks_worker import OWN_SEED, launch
from tests.processes import forked, free_port


class Said(NamedTuple):
    """What a command left in one of the processes: its exit code, what it printed, and the folder of both."""

    code: int
    out: str
    err: str
    folder: Path


PRUNE = ("--method", "snip", "--batch-size", "4", "--batches", "5", "--device", "cpu", "--out", "run")
FEW = ("--preset", "shapes", "--steps", "2", "--batch-size", "4", "--limit", "4", "--precision", "fp32")


@pytest.fixture(scope="module")
def said(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, tiny_blip: Path, pairs: Path, world: Path
) -> Callable[[str], list[Said]]:
    """What both processes said to a command, by its name: one launch for all of them."""
    folder = tmp_path_factory.mktemp("two")
    mask = mf.prune(mf.load_model(tiny_blip), "magnitude", 0.5).masks[0.5].save(folder / "mask.safetensors")
    prune = ["prune", tiny, "--data", pairs, *PRUNE]
    train = ["finetune", "retrieval", tiny_blip, "--mask", mask, "--data", world / "coco", *FEW]
    train += ["--shard", "--out", "../trained"]
    commands = {"pruned": prune, OWN_SEED: prune, "fine-tuned": train, "resumed": [*train, "--resume"]}
    lines = {name: (free_port(), [str(word) for word in words]) for name, words in commands.items()}
    (folder / "commands.json").write_text(json.dumps(lines))
    forked(launch, folder)
    return lambda name: [
        Said(*json.loads((folder / name / f"said-{rank}.json").read_text()), folder / name) for rank in range(2)
    ]


def test_masks_are_those_of_one_process(
    said: Callable[[str], list[Said]], tiny: Path, pairs: Path, run: Run, tmp_path: Path
) -> None:
    assert [one.code for one in said("pruned")] == [0, 0], said("pruned")
    ran = run("prune", tiny, "--data", pairs, *PRUNE)
    assert ran.code == 0
    folders = said("pruned")[0].folder / "run", tmp_path / "run"
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


def test_the_first_process_alone_prints(said: Callable[[str], list[Said]], run: Run) -> None:
    first, second = said("pruned")
    shown = run("show", first.folder / "run").out.replace(f"in {first.folder}/run:", "in run:")
    assert first.out.startswith(shown)  # and then what to do next
    lines = [line for line in first.err.splitlines() if line.startswith("calibrate")]
    assert len(lines) == len(set(lines)) >= 1
    assert "warning" not in first.err
    assert second.out == second.err == ""


def test_other_settings_are_one_sentence_and_leave_nothing(said: Callable[[str], list[Said]]) -> None:
    first, second = said(OWN_SEED)
    assert (first.code, first.out) == (second.code, second.out) == (2, "")
    assert first.err.count("\n") == 1
    assert "seed (0 on process 0, 1 on process 1)" in first.err
    assert second.err == ""
    assert not (first.folder / "run").exists()


def test_a_blip_split_between_two_processes_is_fine_tuned_with_its_zeros_and_resumed_when_finished(
    said: Callable[[str], list[Said]],
) -> None:
    trained, resumed = said("fine-tuned"), said("resumed")
    assert [one.code for one in (*trained, *resumed)] == [0] * 4, trained[0].err + resumed[0].err
    assert trained[0].out == resumed[0].out != ""
    folder = trained[0].folder.parent / "trained"
    stored, masks = mf.load_model(folder / "model"), mf.Masks.load(folder / "mask.safetensors")
    assert all(not stored.get_submodule(name).weight[~mask].any() for name, mask in masks.items())


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
    with pytest.raises(mf.MultiflowError, match="--device cuda:0 is one GPU, .*2 processes"):
        own_device("cuda:0", 0, 2)
    with pytest.raises(mf.MultiflowError, match="device 'cuda:2' is not on this machine"):
        own_device("cuda", 2, 3)
