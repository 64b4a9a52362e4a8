"""What all tests share: tiny models on disk, a small Shapes world, and the command line run in this process."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import pytest
import transformers

from multiflow.cli import main
from multiflow.data import load_tokenizer
from multiflow.families import FAMILIES
from multiflow.methods import PRUNERS
from multiflow.tasks.task import TASKS
from multiflow.worlds.shapes import write
from multiflow.worlds.shapes.models import Pretraining, shapes_model, shapes_tokenizer
from tests import processes
from tests.families.automatic import processors
from tests.tiny import SMALL


@pytest.fixture(autouse=True)
def _forget_records_of_the_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the registries as they were, and forget modules that the test wrote or brought in from outside.

    The one place that reaches into the registries: nobody but a test has a reason to take a record out of one.
    """
    for registry in (PRUNERS, TASKS, FAMILIES):
        monkeypatch.setattr(registry, "_records", dict(registry))  # all of ours are there
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if re.search("pytest-of|/tests/extending/", str(getattr(sys.modules[name], "__file__", ""))):
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="module")
def _no_process_is_left() -> Iterator[None]:
    """What the tests of a module started has ended with them, or gets ten seconds for it."""
    before = set(processes.children())
    yield
    _, alive = psutil.wait_procs([one for one in processes.children() if one not in before], timeout=10)
    left = [" ".join(one.as_dict(["cmdline"])["cmdline"] or [one.name()]) for one in alive]
    for one in alive:
        one.kill()
    assert left == []


@pytest.fixture(scope="session")
def forks() -> None:
    """Processes that the engine ``local`` starts are forked off the one that has imported everything, too."""
    processes.ready_to_fork()


class Ran(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence of a command that found its input bad."""
        assert self.code == 2, self
        assert self.out == ""
        assert self.err.startswith("multiflow: error: ")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("multiflow: error: ").rstrip("\n")


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny X-VLM with random weights and the tokenizer of Shapes."""
    return save_tiny("xvlm", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny BLIP for pretraining with random weights and the tokenizer of Shapes."""
    return save_tiny("blip", tmp_path_factory.mktemp("models") / "tiny-blip")


@pytest.fixture(scope="session")
def folder_of(tiny_blip: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny BLIPs, ours and those of transformers, by the class of the model."""

    @cache
    def folder_of(name: str) -> Path:
        if name == "BlipForPretraining":
            return tiny_blip
        tokenizer = load_tokenizer(tiny_blip)
        layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        text = {"vocab_size": len(tokenizer), "bos_token_id": len(tokenizer) - 2, "max_position_embeddings": 40}
        vision = {"image_size": 24, "patch_size": 8}
        config = transformers.BlipConfig(text_config=layers | text, vision_config=layers | vision)
        folder = tmp_path_factory.mktemp(name)
        getattr(transformers, name)(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny models of transformers with their own processors, by type: ``clip``, ``llava`` ..."""

    @cache
    def vlm(kind: str) -> Path:
        return getattr(processors, kind)(tmp_path_factory.mktemp(kind) / f"tiny-{kind}")

    return vlm


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs in ``coco``, questions in ``vqa``: 6 train, 5 val and 4 test images."""
    return write(tmp_path_factory.mktemp("data") / "world", train=12, val=5, test=4, size=SMALL.image_size)


def save_tiny(family: Literal["xvlm", "blip"], folder: Path) -> Path:
    """Write a tiny model of a family with its tokenizer."""
    tokenizer = shapes_tokenizer(family)
    sizes = {"image_size": 32, "width": 16, "heads": 2, "vision_layers": 2, "text_layers": 1, "fusion_layers": 1}
    settings = Pretraining(family=family, **sizes, vision_mlp=32, text_mlp=32, embed_dim=8)
    shapes_model(settings, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
