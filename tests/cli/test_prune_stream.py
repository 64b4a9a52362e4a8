"""``multiflow prune --stream``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import multiflow as mf
from tests.cli.conftest import Run, files

FEW = ("--batches", 2, "--batch-size", 4, "--sparsity", 0.5, 0.75)


@pytest.mark.parametrize("method", ["wanda", "lobs"])
def test_the_files_are_those_of_a_run_in_memory(method: str, run: Run, tiny: Path, pairs: Path, tmp_path: Path) -> None:
    few = ("--set", "rounds=2", "iterations=2") if method == "lobs" else ()
    for out, stream in (("whole", ()), ("out", ("--stream",))):
        ran = run("prune", tiny, "--data", pairs, "--method", method, *few, *FEW, "--out", out, *stream)
        assert ran.code == 0, ran.err
    assert "calibrated on 2 batches, 8 pairs" in ran.out
    assert [name.removeprefix("out/") for name in files(tmp_path) if name.startswith("out/")] == [
        name.removeprefix("whole/") for name in files(tmp_path) if name.startswith("whole/")
    ]
    whole, found = mf.Result.load("whole"), mf.Result.load("out")
    for sparsity, masks in whole.masks.items():
        assert found.masks[sparsity] == masks
        for name, weight in (whole.weights or {}).get(sparsity, {}).items():
            assert (found.weights[sparsity][name] == weight).all()
    said = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in ("out", "whole")}
    assert said["out"]["data"] == said["whole"]["data"]
    assert said["out"]["run"]["stream"] is True


def test_a_run_that_was_interrupted_goes_on(
    run: Run, tiny: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("prune", tiny, "--data", pairs, "--method", "wanda", *FEW, "--stream", "--out")
    assert run(*command, "whole").code == 0

    @contextmanager
    def interrupting() -> Iterator[Callable[..., None]]:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        yield interrupt

    with monkeypatch.context() as patched:
        patched.setattr("multiflow.cli.prune.step_progress", interrupting)
        ran = run(*command, "out")
    assert ran.code == 130
    assert "go on with the same command and --resume" in ran.err
    assert "already holds a run" in run(*command, "out").error
    ran = run(*command, "out", "--resume")
    assert ran.code == 0, ran.err
    assert "calibrated on 2 batches, 8 pairs" in ran.out
    whole, found = mf.Result.load("whole"), mf.Result.load("out")
    assert all(found.masks[sparsity] == masks for sparsity, masks in whole.masks.items())
    assert not (tmp_path / "out" / "stream").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sequential",), "--sequential was given without --stream"),
        (("--stream", "--dtype", "bfloat16"), "--dtype was given with --stream"),
        (("--stream", "--until-stable"), "--until-stable was given with --stream"),
        (("--stream", "--method", "snip"), "pruner 'snip' runs the model backwards"),
        (("--stream", "--method", "lobs", "--allocation", "dlp"), "needs the inputs of all layers before"),
    ],
)
def test_what_does_not_go_together(options: tuple[str, ...], said: str, run: Run, tiny: Path, pairs: Path) -> None:
    error = run("prune", tiny, "--data", pairs, *options, "--out", "out").error
    assert said in error
    assert not Path("out").exists()
