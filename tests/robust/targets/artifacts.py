"""Our own files, whose checksums tell damage; and what others publish as torch files."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import multiflow as mf
from multiflow.base.artifacts import describe_file, write_facts
from multiflow.base.packed import read_packed, write_packed
from multiflow.base.runs import run_folder
from multiflow.bench.records import Cell, Pruning, Results
from multiflow.calibration import Checkpoint
from multiflow.cli.console import show_run
from multiflow.cli.evaluate import read_said
from multiflow.families.original import read_tensors
from multiflow.pruning.stream.records import Replay, read_all, read_record, write_record
from multiflow.training.checkpoint import load_checkpoint, save_checkpoint
from multiflow.training.tracking import read_metrics, track_metrics
from tests.robust.fuzz import Target
from tests.small import ADAPTER, towers_batches, two_towers

SETTINGS = {"method": "itersnip", "seed": 0, "share": 0.1 + 0.2}


def same(value: Any) -> str:
    """Hash what a reader gave, tensors by all their bits."""
    if isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode() + bits).hexdigest()
    if isinstance(value, Mapping):
        return repr({str(key): same(of) for key, of in value.items()})
    return repr([same(of) for of in value]) if isinstance(value, list | tuple) else repr(value)


def result_of(method: str, folder: Path) -> None:
    mf.prune(two_towers(), method, [0.5, 0.75], towers_batches(), adapter=ADAPTER).save(folder)


def read_result(folder: Path) -> str:
    found = mf.Result.load(folder)
    masks = {s: (of, dict(of.settings), dict(of.weights), of.layout.layers) for s, of in found.masks.items()}
    return same([masks, found.weights, dict(found.settings), dict(found.timings)])


def published(zipped: bool, folder: Path) -> None:
    folder.mkdir()
    content = {"a.0.weight_pruning_mask": torch.eye(20), "b.weight_pruning_mask": torch.ones(4, 6).bool()}
    torch.save(content, folder / "masks.pth", _use_new_zipfile_serialization=zipped)


def read_masks(folder: Path) -> str:
    found = mf.Masks.load(folder / "masks.pth")
    return same([found, found.layout.layers])


def release(folder: Path) -> None:
    folder.mkdir()
    torch.save({"model": two_towers().state_dict(), "epoch": 3}, folder / "model.pth")


def statistics(folder: Path) -> None:
    mf.calibrate(two_towers(), towers_batches(2), adapter=ADAPTER).save(folder / "stats", note="a")


def read_statistics(folder: Path) -> str:
    found = mf.Stats.load(folder / "stats")
    return same([found.sums, found.counts, found.batches])


def state(folder: Path) -> None:
    tensors = {"mask/a": torch.arange(9, dtype=torch.uint8), "weight/a": torch.ones(3, 2).bfloat16()}
    Checkpoint(folder / "state").save_state(tensors, SETTINGS, {"step": 2})


def read_state(folder: Path) -> str:
    if (found := Checkpoint(folder / "state").load_state(SETTINGS)) is None:
        raise mf.MultiflowError("no file: a run begins anew")
    return same(found)


def calibration(folder: Path) -> None:
    place = Checkpoint(folder / "half", every=1, keep=True)
    mf.prune(two_towers(), "snip", 0.5, towers_batches(2, 1), adapter=ADAPTER, checkpoint=place)


def read_calibration(folder: Path) -> str:
    place = Checkpoint(folder / "half", every=9, keep=True)
    return same(mf.prune(two_towers(), "snip", 0.5, towers_batches(2, 1), adapter=ADAPTER, checkpoint=place).masks)


def _trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = two_towers()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ADAPTER.loss(model, towers_batches(2)[0]).backward()  # type: ignore[misc]
    optimizer.step()
    return model, optimizer


def training(folder: Path) -> None:
    save_checkpoint(folder, *_trained(), {"step": 3, "metrics": {"loss": 0.1 + 0.2}})


def read_training(folder: Path) -> str:
    model, optimizer = _trained()
    said = load_checkpoint(folder / "step-00000003", model, optimizer)
    return same([said, model.state_dict(), optimizer.state_dict()])


def packed(compress: str, folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    sparse = torch.randn(20, 30) * (torch.rand(20, 30) > 0.7)
    write_packed(folder / "p.safetensors", {"a.weight": sparse, "b": torch.ones(3)}, "fp32", compress)


def records(folder: Path) -> None:
    given = {"model": "m", "pruner": "wanda", "seed": 1}
    cell = Cell("3f", sparsity=0.5, task="vqa", tier="1", score=61.25, each=[0.0, 1.0], curve=[(2, 0.1 + 0.2)], **given)
    results = Results(folder)
    folder.mkdir()
    results.expect([cell, replace(cell, id="a0")])
    for record in (cell, replace(cell, id="a0", score=None, error="no luck"), _pruning(), replace(_pruning(), id="8")):
        results.append(record)
    shutil.rmtree(folder / "locks")


def _pruning() -> Pruning:
    return Pruning("7", "m", "wanda", 1, 0.5, 0.25, 12, 10**6, [("a", "text", 12)], {0.5: [6]})


def read_records(folder: Path) -> str:
    results = Results(folder)
    return repr([results.cells(), results.prunings(), results.expected()])


def metrics(folder: Path) -> None:
    folder.mkdir()
    with track_metrics(folder, 0) as track:
        for step in range(1, 6):
            track(step, {"loss": 1 / step, "rate": 12.5})
    for path in folder.glob("events*"):
        path.unlink()


def figures(folder: Path) -> None:
    folder.mkdir()
    write_facts(folder / "figures.json", {"TR@1": 100 / 3, "IR@1": 50.0, "step": 4})


def read_shown(folder: Path) -> str:
    with redirect_stdout(io.StringIO()) as said:
        show_run(folder)
    return said.getvalue()


def evaluation(folder: Path) -> None:
    folder.mkdir()
    (folder / "captions.json").write_text('[{"image_id": 1, "caption": "a dog"}]')
    said = {"task": "captioning", "figures": {"CIDEr": 100 / 3}, "said": ["a dog"], "items": 1, "source": "coco"}
    files = {"captions.json": describe_file(folder / "captions.json")}
    write_facts(folder / "evaluation.json", {**said, "settings": {"model": "m", "split": "val"}, "files": files})


def read_evaluation(folder: Path) -> str:
    return repr([read_shown(folder), read_said(str(folder))])


def settings(folder: Path) -> None:
    with run_folder(folder, SETTINGS, resume=False):
        pass


def read_settings(folder: Path) -> str:
    with run_folder(folder, SETTINGS, resume=True):
        return (folder / "settings.json").read_text()


def activations(folder: Path) -> None:
    write_record(folder / "a.act", {"x": torch.arange(8000.0).view(2, -1), "mask": torch.ones(64).bool(), "n": 3})


def read_activations(folder: Path) -> str:
    return same(read_all(read_record(folder / "a.act", Replay(torch.device("cpu")))))


Make, Read = Callable[[Path], None], Callable[[Path], Any]
KINDS: dict[str, tuple[Make, Read, bool]] = {
    "result": (partial(result_of, "magnitude"), read_result, True),
    "result-weights": (partial(result_of, "lobs"), read_result, True),
    "statistics": (statistics, read_statistics, True),
    "state": (state, read_state, True),
    "calibration": (calibration, read_calibration, True),
    "training": (training, read_training, True),
    "packed": (partial(packed, "none"), lambda folder: same(read_packed(folder / "p.safetensors")), True),
    "packed-zlib": (partial(packed, "zlib"), lambda folder: same(read_packed(folder / "p.safetensors")), True),
    "records": (records, read_records, False),  # lines may be missing, as after a kill
    "metrics": (metrics, lambda folder: read_metrics(folder), False),  # the last line may be torn, as by a kill
    # shown as older versions wrote them where neither format nor checksum is left: no bit alone does that
    "figures": (figures, read_shown, False),
    "evaluation": (evaluation, read_evaluation, False),
    "settings": (settings, read_settings, True),
    "activations": (activations, read_activations, True),
    "published": (partial(published, True), read_masks, True),
    "published-pickle": (partial(published, False), read_masks, False),
    "release": (release, lambda folder: same(read_tensors(folder / "model.pth")), True),
}
TARGETS = [Target(name, *how) for name, how in KINDS.items()]
