"""Folders of models in every form that this library writes, and runs that go on: recoveries, searches, walks."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification

import multiflow as mf
from multiflow.calibration import Checkpoint
from multiflow.cli.apply import data_of
from multiflow.cli.demo import check_replaceable
from multiflow.families.opening import load_model
from multiflow.formats import export
from multiflow.formats.packed import pack_folder
from multiflow.methods.search import search
from multiflow.tasks.classification.zero_shot import class_words, sentence_templates
from tests.families.automatic import speech
from tests.families.open_clip.test_names import SIZES, OpenClip
from tests.pruning.stream.models import opened
from tests.robust.fuzz import Target
from tests.robust.targets.artifacts import same
from tests.small import ADAPTER, towers_batches, two_towers

WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def _vit() -> Any:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**WIDTHS, image_size=16, patch_size=8, num_labels=3)).eval()


def _packed(folder: Path) -> None:
    model = _vit()
    export(model, mf.prune(model, "magnitude", 0.75).masks[0.75], folder, values="fp32")


def _smaller(format: str, folder: Path) -> None:
    model = _vit()
    masks = mf.prune_units(model, "magnitude", 0.5, units="heads", allocation="global").masks[0.5]
    export(model, masks, folder, format=format, values="fp32", compact=True)


def read_model(folder: Path) -> Any:
    """Load a model, and say what it holds."""
    return same(load_model(folder).state_dict())


def _to_pack(folder: Path) -> None:
    _vit().save_pretrained(folder)


def read_to_pack(folder: Path) -> Any:
    """Pack an ordinary folder, and unpack it."""
    with tempfile.TemporaryDirectory() as place:
        again = mf.unpack(pack_folder(folder, Path(place) / "packed"), Path(place) / "again")
        return sorted(path.name for path in again.iterdir())


def _open_clip(folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(OpenClip().state_dict(), folder / "clip.pt")
    (folder / "sizes.json").write_text(json.dumps({"model_cfg": SIZES}))


def read_open_clip(folder: Path) -> Any:
    """Load weights of open_clip with the sizes beside them."""
    model = load_model(folder / "clip.pt", family="open_clip", config=str(folder / "sizes.json"))
    return len(model.state_dict())


@cache
def _listening() -> tuple[Path, Any]:
    folder = speech.whisper(Path(tempfile.mkdtemp(prefix="fuzz-")) / "whisper")
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    return folder, load_model(folder)


def _whisper(folder: Path) -> None:
    shutil.copytree(_listening()[0], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    speech.write_tones(folder / "said", {"a.wav": "one", "b.wav": "two"}, subtype="PCM_16")


def read_whisper(folder: Path) -> Any:
    """Load the processor of a model that listens, and make what it takes of speech."""
    batches = mf.calibration_batches(_listening()[1], str(folder / "said"), processor=str(folder))
    return [{name: tuple(of.shape) for name, of in batch.items()} for batch in batches]


def _stopped(run: Callable[[Any], Any]) -> None:
    """Run until the first word about how far it is after something was kept."""

    class Stop(BaseException):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if done and what != "calibrate":
            raise Stop

    try:
        run(stop)
    except Stop:
        return
    raise AssertionError("it was to be stopped on its way")


@cache
def _masks() -> mf.Result:
    return mf.prune(two_towers(), "magnitude-layer", 0.5, adapter=ADAPTER)


def _recover(folder: Path, progress: Any = False) -> Any:
    place = Checkpoint(folder / "recovery.safetensors", keep=True)
    batches = towers_batches(2, 1)
    return mf.recover(
        two_towers(), _masks(), 0.5, batches, "distill", adapter=ADAPTER, checkpoint=place, progress=progress, epochs=2
    )


def read_recovery(folder: Path) -> Any:
    """Go on with a recovery."""
    found = _recover(folder)
    return same(found.weights)


def quick(layout: Any, sparsity: float, *, fitness: Any) -> Any:
    """A search of a few generations."""
    return search(layout, [sparsity], fitness=fitness, generations=3, children=3)[0]


def _search(folder: Path, progress: Any = False) -> Any:
    place = Checkpoint(folder / "search.safetensors", every=1, keep=True)
    how = {"allocation": quick, "adapter": ADAPTER, "checkpoint": place, "progress": progress}
    return mf.prune(two_towers(), "magnitude-layer", 0.5, towers_batches(2, 1), **how)


def read_search(folder: Path) -> Any:
    """Go on with a search for budgets."""
    return same(_search(folder).masks)


@cache
def _streamed() -> tuple[Any, Any]:
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    _, model, batches = opened("clip", place)
    return model, batches


def _stream(folder: Path, progress: Any = False) -> Any:
    model, batches = _streamed()
    return mf.prune_streamed(model, "wanda", 0.5, batches, folder=folder, progress=progress)


def read_walk(folder: Path) -> Any:
    """Go on with a walk through the blocks of a model."""
    return same(_stream(folder).masks)


def _walk(folder: Path) -> None:
    _stopped(partial(_stream, folder))


def _neighbours(folder: Path) -> None:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"run": {"data": "pairs"}}))
    (folder / "demo").mkdir()
    (folder / "demo" / "demo.json").write_text(json.dumps({"files": ["a.html"]}))
    (folder / "names.json").write_text(json.dumps({"n01440764": "tench"}))
    (folder / "templates.txt").write_text("a photo of a {}.\nthe {}\n")
    (folder / "demo" / "a.html").write_text("a")


def read_neighbours(folder: Path) -> Any:
    """Read what lies beside what a command was given."""
    said = data_of(folder / "mask-0.5.safetensors")
    check_replaceable(folder / "demo", folder / "demo")
    words = class_words(["n01440764", "a_b"], folder / "names.json")
    return said, words, sentence_templates([str(folder / "templates.txt")])


TARGETS = [
    Target("packed-folder", _packed, read_model, True, weight=0.3),
    Target("smaller-folder", partial(_smaller, "folder"), read_model, weight=0.2),
    Target("smaller-packed", partial(_smaller, "packed"), read_model, True, weight=0.2),
    Target("folder-to-pack", _to_pack, read_to_pack, weight=0.2),
    Target("open-clip", _open_clip, read_open_clip, weight=0.2),
    Target("recovery", lambda folder: _stopped(partial(_recover, folder)), read_recovery, True, weight=0.3),
    Target("search", lambda folder: _stopped(partial(_search, folder)), read_search, True, weight=0.3),
    Target("walk", _walk, read_walk, True, weight=0.2),
    Target("neighbours", _neighbours, read_neighbours),
    *(
        [Target("processor-whisper", _whisper, read_whisper, weight=0.2)]
        if find_spec("soundfile") and find_spec("soxr")
        else []
    ),
]
