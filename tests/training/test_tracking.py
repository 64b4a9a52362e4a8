from __future__ import annotations

import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.training.tracking import FILE, SEAL, WANDB_RUN, Meter, read_metrics, track_metrics


def test_records_after_the_start_are_written_again_and_torn_lines_forgotten(tmp_path):
    with track_metrics(tmp_path, 0) as track:
        for step in (10, 20, 30):
            track(step, {"loss": step / 10})
    (tmp_path / SEAL).unlink()  # of a run that was killed before its end
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 40, "loss"')
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20, 30]
    with track_metrics(tmp_path, 20) as track:
        track(30, {"loss": -1.0})
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": -1.0}]
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("lost", ["", "half of the last line", "the last line", "two lines", "all", "the file"])
def test_a_run_that_has_ended_misses_lines_at_its_end_and_a_killed_one_goes_on(lost, tmp_path, run):
    folder = tmp_path / "train"
    folder.mkdir()
    with track_metrics(folder, 0) as track:
        for step in (10, 20, 30):
            track(step, {"loss": step / 10})
    whole = (folder / FILE).read_bytes()
    *_, second, third = whole.splitlines(keepends=True)
    ends = {"": 0, "half of the last line": len(third) // 2, "the last line": len(third)}
    ends |= {"two lines": len(second + third), "all": len(whole)}
    (folder / FILE).unlink() if lost == "the file" else (folder / FILE).write_bytes(whole[: len(whole) - ends[lost]])
    (tmp_path / "figures.json").write_text('{"step": 30, "tr1": 50.0}')
    if not lost:
        assert len(read_metrics(folder)) == 3
        assert run("show", tmp_path).code == 0
        return
    with pytest.raises(MultiflowError, match=r"metrics\.jsonl'"):
        read_metrics(folder)
    shown = run("show", tmp_path)
    assert (shown.code, "metrics.jsonl" in shown.err) == (2, True)
    (folder / SEAL).unlink()  # as it is while a run is going on
    assert len(read_metrics(folder)) == {"half of the last line": 2, "the last line": 2, "two lines": 1}.get(lost, 0)


def test_a_run_that_failed_is_not_sealed_and_one_that_goes_on_is_sealed_anew(tmp_path):
    for end in (KeyboardInterrupt, None):
        with suppress(KeyboardInterrupt), track_metrics(tmp_path, 0) as track:
            track(1, {"loss": 1.0})
            if end:
                raise end
        assert (tmp_path / SEAL).exists() == (end is None)
    with pytest.raises(KeyboardInterrupt), track_metrics(tmp_path, 1) as track:
        assert not (tmp_path / SEAL).exists()
        raise KeyboardInterrupt


def test_a_folder_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_meter_averages_each_figure_over_the_steps_that_have_it():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0, requires_grad=True), "box": 5.0}, samples=4)
    meter.add({"loss": torch.tensor(2.0)}, samples=4)
    read = meter.read()
    assert read["loss"] == 1.5
    assert read["box"] == 5.0
    assert read["rate"] > 0
    meter.add({"loss": 7.0}, samples=1)
    assert {k: v for k, v in meter.read().items() if k != "rate"} == pytest.approx({"loss": 7.0})


def test_a_project_of_weights_and_biases_gets_the_metrics_and_a_resumed_run_goes_on_in_it(tmp_path, monkeypatch):
    runs = []

    class Run:
        def __init__(self, **options):
            self.options, self.logged, self.finished = options, [], False
            runs.append(self)

        def log(self, metrics, step):
            self.logged.append((step, metrics))

        def finish(self):
            self.finished = True

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Run))
    for start in (0, 1):
        with track_metrics(tmp_path, start, wandb="pruned") as track:
            track(start + 1, {"loss": 0.5})
    assert [run.logged for run in runs] == [[(1, {"loss": 0.5})], [(2, {"loss": 0.5})]]
    assert all(run.finished and run.options["project"] == "pruned" for run in runs)
    assert runs[0].options["id"] == runs[1].options["id"] == (tmp_path / WANDB_RUN).read_text().strip()


def test_weights_and_biases_that_is_not_installed_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = r"wandb project 'p' was given.*pip install -e '\.\[wandb\]'"
    with pytest.raises(MultiflowError, match=said), track_metrics(tmp_path, 0, wandb="p"):
        pass
    assert read_metrics(tmp_path) == []
