"""Files that version 0.1.0 wrote before its packages were moved (``artifacts/``) open, and say what they said.

Only the public names of ``multiflow``, ``multiflow.cli.main`` and the command line are used. A checkpoint of a pruning
carries the versions of multiflow, torch and transformers, and goes on with these alone: with others the tests of it
expect to be refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import multiflow as mf
from multiflow.cli import main
from tests import processes

FILES = Path(__file__).parent / "artifacts"
FACTS: dict[str, Any] = json.loads((FILES / "facts.json").read_text())
CUT = [name.partition("/")[2] for name in FACTS if name.startswith("cut/")]
RUNS = ["pruned/multiflow", "pruned/wanda-2-4", "pruned/blip", "pruned/lobs"]
CHANGED = [name for name, of in FACTS["versions"].items() if name != "multiflow" and version(name) != of]
SAME_SUMS = torch.backends.cpu.get_cpu_capability() == "AVX2"  # as where the files were made; others round otherwise
SAME_BITS = pytest.mark.skipif(bool(CHANGED), reason=f"made with other versions of {', '.join(CHANGED)}")


class Ran(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


class MLP(nn.Module):
    """The plain model of ``python/half.safetensors``; weights and batches are formulas, not random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters(), start=1):
                at = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.copy_((at * 0.7 * number + number).sin().view(parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def mlp_batches(count: int = 6) -> list[Tensor]:
    at = torch.arange(5 * 16, dtype=torch.float64)
    return [(at * 0.31 * (number + 1)).cos().view(5, 16).float() for number in range(count)]


def hash_masks(masks: mf.Masks) -> str:
    found = hashlib.sha256()
    for name, mask in masks.items():
        found.update(f"{name} {tuple(mask.shape)}\n".encode())
        found.update(np.packbits(mask.numpy().astype(bool).flatten()).tobytes())
    return found.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode() + value)
    return found.hexdigest()


def contents(folder: str | Path) -> dict[str, str]:
    """Hashes of the masks, and changed weights, of a run folder."""
    result = mf.Result.load(folder)
    found = {f"{s:g}": hash_masks(masks) for s, masks in result.masks.items()}
    return found | {f"weights {s:g}": hash_tensors(weights) for s, weights in (result.weights or {}).items()}


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def alter(path: Path) -> None:
    """Turn the tensors of a safetensors file of ours around; what its header says stays true."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    turned = {name: x.flip(0).contiguous() if x.ndim else x for name, x in load_file(path).items()}
    save_file(turned, path, metadata=header)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old files, in which everything runs."""
    folder = tmp_path / "old"
    shutil.copytree(FILES, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Ran(code, *capsys.readouterr())

    return run


# masks, results


@pytest.mark.parametrize("folder", RUNS)
def test_a_finished_run(folder: str, run: Run) -> None:
    assert contents(folder) == FACTS[folder]
    result = mf.Result.load(folder)
    assert all(masks.settings["sparsity"] == s for s, masks in result.masks.items())
    assert all(masks.sparsity == pytest.approx(s, abs=2e-3) for s, masks in result.masks.items())
    assert result.settings["versions"] == FACTS["versions"]
    ran = run("show", folder)
    assert ran.code == 0, ran.err
    assert f"pruned by {result.settings['method']} " in ran.out


@pytest.mark.parametrize(
    ("path", "model"),
    [("pruned/multiflow/mask-0.5.safetensors", "models/xvlm"), ("masks/blip.safetensors", "models/blip")],
)
def test_masks_fit_the_model_they_were_made_for(
    path: str, model: str, run: Run, recwarn: pytest.WarningsRecorder
) -> None:
    masks, loaded = mf.Masks.load(path), mf.load_model(model)
    assert masks.layout == mf.adapter_for(loaded).layout(loaded)
    recwarn.clear()
    masks.apply_(loaded)
    assert not recwarn.list
    assert masks.is_applied(loaded)
    assert run("apply", model, path, "--out", "sparse").code == 0
    assert hash_tensors(mf.load_model("sparse").state_dict()) == hash_tensors(loaded.state_dict())


def test_masks_of_a_pattern() -> None:
    masks = mf.Masks.load("masks/xvlm-2-4.safetensors")
    assert hash_masks(masks) == FACTS["pruned/wanda-2-4"]["0.5"]
    assert (masks.settings["method"], masks.settings["pattern"]) == ("wanda", "2:4")
    assert all((mask.view(-1, 4).sum(1) == 2).all() for mask in masks.values())


def test_masks_of_shared_weights() -> None:
    masks, model = mf.Masks.load("masks/blip.safetensors"), mf.load_model("models/blip")
    shared = {layer.name: list(layer.aliases) for layer in masks.layout.layers if layer.aliases}
    assert shared == FACTS["shared"] != {}
    masks.apply_(model)
    for name, aliases in shared.items():
        for alias in aliases:
            assert not model.get_submodule(alias).weight[~masks[name]].any()


def test_an_altered_mask_file_is_refused() -> None:
    alter(Path("masks/blip.safetensors"))
    with pytest.raises(mf.MultiflowError):
        mf.Masks.load("masks/blip.safetensors")


@pytest.mark.parametrize(("name", "folder"), [("xvlm", "pruned/multiflow"), ("blip", "pruned/blip")])
def test_masks_in_the_published_format(name: str, folder: str, run: Run) -> None:
    model, path = mf.load_model(f"models/{name}"), f"masks/{name}.pth"
    masks = mf.Masks.load(path).rename(mf.adapter_for(model).layout(model), mf.original_names(model))
    ours = mf.Result.load(folder).masks[0.75]
    assert masks == ours
    assert hash_masks(masks) == FACTS[folder]["0.75"]
    stored = torch.load(path, weights_only=True)
    assert sorted(stored) == FACTS["published"][name]
    for out in (ours.save("again.pth", "original"), ours.save("more.pth", "original", mf.original_names(model))):
        again = torch.load(out, weights_only=True)
        assert again.keys() == stored.keys()
        assert all(torch.equal(mask, stored[key]) and mask.dtype == stored[key].dtype for key, mask in again.items())
    assert run("apply", f"models/{name}", path, "--out", "sparse").code == 0
    assert masks.is_applied(mf.load_model("sparse"))
    assert run("show", path, f"{folder}/mask-0.75.safetensors").code == 0


def test_changed_weights(run: Run) -> None:
    model = mf.load_model("models/xvlm")
    masks = mf.Result.load("pruned/lobs").apply_(model, 0.75)
    assert hash_tensors(model.state_dict()) == FACTS["lobs applied at 0.75"]
    assert masks is None or masks.is_applied(model)
    assert run("apply", "models/xvlm", "pruned/lobs/mask-0.75.safetensors", "--out", "sparse").code == 0
    assert hash_tensors(mf.load_model("sparse").state_dict()) == FACTS["lobs applied at 0.75"]


# interrupted prunings


@SAME_BITS
@pytest.mark.parametrize("name", CUT)
def test_an_interrupted_pruning_goes_on(name: str, run: Run) -> None:
    facts, folder = FACTS[f"cut/{name}"], f"cut/{name}"
    command = [*facts["command"], "--out", folder]
    assert "has not ended" in run("show", folder).err
    assert "already holds a run; go on with it with --resume" in run(*command).err
    assert "with other settings: seed" in run(*command, "--seed", 7, "--resume").err
    ran = run(*command, "--resume")
    if CHANGED:
        assert (ran.code, "other settings: multiflow" in ran.err) == (2, True)
        return
    assert ran.code == 0, ran.err
    found = contents(folder)
    assert found.keys() == facts["masks"].keys()
    assert all(found[part] == of for part, of in facts["masks"].items() if SAME_SUMS or not part.startswith("weights"))
    assert all(file == "result.json" or file.startswith(("mask-", "weights-")) for file in names(folder))
    if name == "multiflow":
        assert "calibrate 5/6" in ran.err
        assert "calibrate 1/6" not in ran.err


@SAME_BITS
@pytest.mark.skipif(bool(CHANGED), reason="no checkpoint of another version is gone on with")
@pytest.mark.parametrize("name", CUT)
def test_it_is_the_checkpoint_from_which_a_pruning_goes_on(name: str, run: Run) -> None:
    folder = Path("cut") / name
    for path in folder.glob("calibration*.safetensors"):
        if "half" not in path.name:
            alter(path)
    ran = run(*FACTS[f"cut/{name}"]["command"], "--out", folder, "--resume")
    assert ran.code == 0, ran.err
    assert contents(folder) != FACTS[f"cut/{name}"]["masks"]


@SAME_BITS
@pytest.mark.skipif(bool(CHANGED), reason="no checkpoint of another version is gone on with")
def test_a_calibration_from_python_goes_on() -> None:
    path, batches = Path("python/half.safetensors"), mlp_batches()
    adapter = mf.Adapter(groups={"encoder": r"^encoder\."})
    given = [batch * torch.nan for batch in batches[:4]] + batches[4:]  # the first four are not computed again
    with pytest.raises(mf.MultiflowError, match="settings"):
        mf.prune(MLP(), "lobs", 0.6, given, adapter=adapter, checkpoint=mf.Checkpoint(path, every=2))
    result = mf.prune(MLP(), "ria", 0.6, given, adapter=adapter, checkpoint=mf.Checkpoint(path, every=2))
    assert hash_masks(result.masks[0.6]) == FACTS["python"]
    assert not path.exists()


def test_statistics() -> None:
    stats = mf.Stats.load("python/stats.safetensors")
    assert (list(stats), stats.batches) == (["input_norm"], 6)
    result = mf.prune(MLP(), "ria", 0.6, stats, adapter=mf.Adapter(groups={"encoder": r"^encoder\."}))
    assert hash_masks(result.masks[0.6]) == FACTS["python"]


# fine-tuning


def test_a_finished_fine_tuning(run: Run) -> None:
    facts, command = FACTS["finetune"], [*FACTS["finetune"]["command"], "--out", "finetune/done"]
    model, masks = mf.load_model("finetune/done/model"), mf.Masks.load("finetune/done/mask.safetensors")
    assert hash_tensors(model.state_dict()) == facts["model"]
    assert hash_masks(masks) == facts["mask"]
    assert masks.is_applied(model)
    shown = run("show", "finetune/done")
    assert "mean recall" in shown.out
    again = run(*command, "--resume")
    assert (again.code, again.out.rsplit("next: ", 1)[0]) == (0, shown.out), again.err
    assert figures_in(Path("finetune/done")) == facts["figures"]
    assert hash_tensors(mf.load_model("finetune/done/model").state_dict()) == facts["model"]
    assert "already holds a run" in run(*command).err
    assert "other settings: seed (0 then, 1 now)" in run(*command, "--resume", "--seed", 1).err


def figures_in(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "figures.json").read_text())
    return {name: value for name, value in found.items() if name not in ("format", "checksum")}


def test_a_fine_tuned_model_is_evaluated(run: Run) -> None:
    ran = run(
        "evaluate", "retrieval", "finetune/done/model", "--data", "world/coco", "--split", "val", "--device", "cpu"
    )
    assert ran.code == 0, ran.err
    assert "IR@1" in ran.out


@SAME_BITS
@pytest.mark.parametrize("altered", [False, True])
def test_an_interrupted_fine_tuning_goes_on(altered: bool, run: Run) -> None:
    facts, cut, last = FACTS["finetune"], Path("finetune/cut"), "train/step-00000004/model.safetensors"
    assert not (cut / "figures.json").exists()
    assert "already holds a run" in run(*facts["command"], "--out", cut).err
    if altered:  # what is trained on is indeed the checkpoint
        path = cut / "train/step-00000002/model.safetensors"
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            header = file.metadata()
        save_file({n: x / 2 if x.is_floating_point() else x for n, x in tensors.items()}, path, metadata=header)
    ran = run(*facts["command"], "--out", cut, "--resume")
    assert ran.code == 0, ran.err
    own, done = (load_file(Path("finetune") / name / last) for name in ("cut", "done"))
    if altered:
        assert hash_tensors(own) != hash_tensors(done)
    elif SAME_SUMS:
        assert hash_tensors(own) == hash_tensors(done)
        assert figures_in(cut) == facts["figures"]
        assert hash_tensors(mf.load_model(cut / "model").state_dict()) == facts["model"]
    else:
        assert all(torch.allclose(own[name], of, atol=1e-4) for name, of in done.items())


# benchmark, demo


def cells() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("bench/cells.jsonl").read_text().splitlines()]


def bench(run: Run, *words: object) -> Ran:
    return run("bench", "run", "grid.yaml", "--out", "bench", "--device", "cpu", *words)


def test_a_grid_that_is_done_is_skipped_and_reported(run: Run) -> None:
    before = Path("bench/cells.jsonl").read_bytes()
    ran = bench(run)
    assert ran.code == 0, ran.err
    assert "cell 1/" not in ran.err
    assert Path("bench/cells.jsonl").read_bytes() == before
    report = run("bench", "report", "bench")
    assert report.code == 0, report.err
    text = Path("bench/report/report.md").read_text()
    assert "flow" in text
    assert "of other settings" not in text


@SAME_BITS
def test_a_cell_that_is_missing_has_its_id_and_figures_again(run: Run) -> None:
    lines = Path("bench/cells.jsonl").read_text().splitlines(keepends=True)
    Path("bench/cells.jsonl").write_text("".join(lines[:-1]))
    pruned = Path("bench/prunings.jsonl").read_bytes()
    ran = bench(run)
    assert ran.code == 0, ran.err
    assert {c["id"]: [c["pruner"], c["sparsity"], c["score"], c["each"]] for c in cells()} == FACTS["bench"]
    assert Path("bench/prunings.jsonl").read_bytes() == pruned  # the masks there are have served
    assert cells()[-1]["pruning"] == json.loads(lines[-1])["pruning"]


@SAME_BITS
def test_prunings_have_their_masks_again(run: Run) -> None:
    old = {path.parent.name: hash_masks(mf.Masks.load(path)) for path in Path("bench").glob("masks/*/mask-0.5*")}
    assert len(old) == 2
    shutil.rmtree("bench")
    assert bench(run, "--only", "pruner=magnitude,flow").code == 0
    new = {path.parent.name: hash_masks(mf.Masks.load(path)) for path in Path("bench").glob("masks/*/mask-0.5*")}
    assert new == old
    assert {cell["id"] for cell in cells()} == {id for id, cell in FACTS["bench"].items() if cell[0] != "dense"}


def test_a_demo_is_shown_and_replaced(run: Run) -> None:
    shown = run("show", "demo")
    assert shown.code == 0, shown.err
    assert "magnitude" in shown.out
    found = json.loads(Path("demo/demo.json").read_text())
    assert [(row["method"], row["sparsity"]) for row in found["rows"]] == [("magnitude", 0.5), ("random", 0.5)]
    Path("demo/notes.txt").touch()
    assert "notes.txt" in run(*FACTS["demo"]["command"], "--out", "demo").err
    Path("demo/notes.txt").unlink()
    old = hash_masks(mf.Masks.load("demo/masks/magnitude/mask-0.5.safetensors"))
    ran = run(*FACTS["demo"]["command"], "--out", "demo")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in Path("demo").rglob("*") if path.is_file()) == FACTS["demo"]["files"]
    assert hash_masks(mf.Masks.load("demo/masks/magnitude/mask-0.5.safetensors")) == old


def test_the_command_in_a_process_of_its_own() -> None:
    assert "2:4" in processes.forked(main, ["show", "masks/xvlm-2-4.safetensors"])
