from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.training.tracking import FILE, WANDB_RUN, Meter, read_metrics, track_metrics


def test_records_after_the_start_are_written_again_and_torn_lines_forgotten(tmp_path):
    with track_metrics(tmp_path, 0) as track:
        for step in (10, 20, 30):
            track(step, {"loss": step / 10})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 40, "loss"')
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20, 30]
    with track_metrics(tmp_path, 20) as track:
        track(30, {"loss": -1.0})
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": -1.0}]
    assert [path.name for path in tmp_path.glob(".*")] == []


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
