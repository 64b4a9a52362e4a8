from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.base.progress import Progress
from multiflow.data.sampling import seed_at
from multiflow.training.checkpoint import checkpoints
from multiflow.training.loop import Validation, compute_in, train
from multiflow.training.settings import TrainSettings
from multiflow.training.tracking import FILE, read_metrics
from tests import processes

SETTINGS = TrainSettings(steps=12, lr=0.05, precision="fp32", checkpoint_every=5, log_every=2)


def make_model() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.3), nn.LayerNorm(16), nn.Linear(16, 1))


def batch(position: int) -> dict[str, torch.Tensor]:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(position))
    return {"x": x, "y": x.sum(1, keepdim=True).sin()}


def loss(model: nn.Module, batch: dict[str, torch.Tensor], position: int) -> tuple[torch.Tensor, dict[str, float]]:
    return (model(batch["x"]) - batch["y"]).square().mean(), {"position": position}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def untimed(run_dir: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k not in ("rate", "seconds")} for record in read_metrics(run_dir)]


def killed_in_step_7(folder: Path) -> None:
    def kill(progress: Progress) -> None:
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    train(make_model(), batch, loss, SETTINGS, folder, progress=kill)


def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    whole, resumed = make_model(), make_model()
    straight = train(whole, batch, loss, SETTINGS, tmp_path / "whole")
    with processes.fork(killed_in_step_7, tmp_path / "killed") as killed:
        assert killed.end() == -signal.SIGKILL
    assert [c.name for c in checkpoints(tmp_path / "killed")] == ["step-00000005"]
    assert [record["step"] for record in read_metrics(tmp_path / "killed")] == [2, 4, 5, 6]

    with (tmp_path / "killed" / FILE).open("a") as file:
        file.write('{"step": 8, "lo')  # a line torn by the kill
    after = train(resumed, batch, loss, SETTINGS, tmp_path / "killed", resume=True)
    assert same_bits(weights(whole), weights(resumed))
    assert untimed(tmp_path / "killed") == untimed(tmp_path / "whole")
    assert [record["step"] for record in read_metrics(tmp_path / "killed")] == [2, 4, 5, 6, 8, 10, 12]
    assert after.steps == straight.steps == 12
    assert after.metrics["loss"] == straight.metrics["loss"]


def test_a_finished_run_resumes_to_its_end_without_a_step(tmp_path):
    first, second = make_model(), make_model()
    done = train(first, batch, loss, SETTINGS, tmp_path)

    def never(position: int) -> dict[str, torch.Tensor]:
        raise AssertionError(position)

    again = train(second, never, loss, SETTINGS, tmp_path, resume=True)
    assert same_bits(weights(first), weights(second))
    assert again == done
    assert again.seconds > 0


def test_training_learns_and_reports(tmp_path):
    seen: list[Progress] = []
    done = train(make_model(), batch, loss, replace(SETTINGS, steps=150, log_every=10), tmp_path, progress=seen.append)
    assert done.metrics["loss"] < 0.6 * read_metrics(tmp_path)[0]["loss"]
    assert [p.step for p in seen] == list(range(1, 151))
    assert seen[-1].stage == tmp_path.name
    assert seen[-1].eta == 0
    assert seen[20].eta > 0
    assert seen[20].rate > 0
    assert seen[-1].metrics == done.metrics == {k: v for k, v in read_metrics(tmp_path)[-1].items() if k != "step"}
    assert done.metrics["position"] == 147  # the mean since the line of step 145, written with a checkpoint


def test_the_random_state_of_the_caller_is_left_alone_and_does_not_matter(tmp_path):
    one, two = make_model(), make_model()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    train(one, batch, loss, SETTINGS, tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    train(two, batch, loss, SETTINGS, tmp_path / "two")
    assert same_bits(weights(one), weights(two))


def test_the_seed_decides_the_dropout(tmp_path):
    one, two = make_model(), make_model()
    train(one, batch, loss, SETTINGS, tmp_path / "one")
    train(two, batch, loss, replace(SETTINGS, seed=1), tmp_path / "two")
    assert not same_bits(weights(one), weights(two))


def test_a_loss_that_is_not_a_number_stops_the_run_and_saves_nothing(tmp_path):
    model = make_model()

    def diverging(model, batch, position):
        value, figures = loss(model, batch, position)
        return (value * float("nan") if position == 6 else value), figures

    with pytest.raises(MultiflowError, match=r"loss is nan .* at step 7, .* lower the learning rate \(0.05\)"):
        train(model, batch, diverging, SETTINGS, tmp_path)
    assert [c.name for c in checkpoints(tmp_path)] == ["step-00000005"]
    assert read_metrics(tmp_path)[-1]["step"] == 6
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_a_gradient_that_is_not_a_number_stops_the_run(tmp_path):
    def bad_gradient(model, batch, position):
        value, figures = loss(model, batch, position)
        return value + (model[0].weight * 0).abs().sqrt().sum(), figures  # finite, with an infinite slope times zero

    with pytest.raises(MultiflowError, match=r"gradient has norm nan at step 1"):
        train(make_model(), batch, bad_gradient, SETTINGS, tmp_path)
    assert not checkpoints(tmp_path)


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    train(make_model(), batch, loss, SETTINGS, tmp_path)
    with pytest.raises(MultiflowError, match=r"already holds a run \(step-00000012\)"):
        train(make_model(), batch, loss, SETTINGS, tmp_path)
    with pytest.raises(MultiflowError, match=r"lr \(0.05 then, 0.01 now\)"):
        train(make_model(), batch, loss, replace(SETTINGS, lr=0.01), tmp_path, resume=True)
    free = replace(SETTINGS, checkpoint_every=3, log_every=1, prefetch=1)
    train(make_model(), batch, loss, free, tmp_path, resume=True)


def test_an_error_in_a_batch_reaches_the_caller(tmp_path):
    def broken(position: int) -> dict[str, torch.Tensor]:
        if position == 3:
            raise MultiflowError("image 17 is corrupt")
        return batch(position)

    with pytest.raises(MultiflowError, match="image 17"):
        train(make_model(), broken, loss, SETTINGS, tmp_path)
    assert read_metrics(tmp_path)[-1]["step"] == 2


def test_tensorboard_gets_the_metrics(tmp_path):
    train(make_model(), batch, loss, SETTINGS, tmp_path)
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_metrics_are_written_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(make_model(), batch, loss, SETTINGS, tmp_path)
    assert not list(tmp_path.glob("events.out.tfevents.*"))
    lines = (tmp_path / FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 5, 6, 8, 10, 12]


def halves(position: int) -> dict[str, torch.Tensor]:
    """The batch of position ``position // 2`` in two halves."""
    return {name: x[4 * (position % 2) :][:4] for name, x in batch(position // 2).items()}


def test_batches_that_are_accumulated_are_one_batch(tmp_path):
    plain = replace(SETTINGS, optimizer="sgd", weight_decay=0.1)
    one, two = make_model().eval(), make_model().eval()
    for model in (one, two):
        model[2].p = 0.0
    seen = []
    train(one, batch, loss, plain, tmp_path / "one")
    train(
        two,
        halves,
        lambda model, batch, position: (seen.append(position), loss(model, batch, position))[1],
        replace(plain, accumulate=2),
        tmp_path / "two",
    )
    assert seen == list(range(24))
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=1e-5, atol=1e-6)


def test_the_model_is_evaluated_on_the_way_and_trains_on_as_if_it_were_not(tmp_path):
    one, two, kept = make_model(), make_model(), []

    def evaluate() -> dict[str, float]:
        two.eval()
        torch.rand(3)
        return {"bias": two[4].bias.item()}

    look = Validation(evaluate, lambda step, figures: kept.append((step, dict(figures))))
    train(one, batch, loss, SETTINGS, tmp_path / "one")
    train(two, batch, loss, replace(SETTINGS, evaluate_every=5), tmp_path / "two", validation=look)
    assert same_bits(weights(one), weights(two))
    assert [step for step, _ in kept] == [5, 10, 12]
    told = {r["step"]: r["val/bias"] for r in read_metrics(tmp_path / "two") if "val/bias" in r}
    assert told == {step: figures["bias"] for step, figures in kept}


def test_bf16_computes_in_bf16_and_auto_asks_the_device(monkeypatch):
    x, cpu = torch.ones(2, 2), torch.device("cpu")
    answers = {}
    for precision in ("fp32", "bf16"):
        with compute_in(precision, cpu):
            answers[precision] = (x @ x).dtype
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda supported=supported: {"avx512_bf16": supported})
        with compute_in("auto", cpu):
            answers[supported] = (x @ x).dtype
    assert answers == {"fp32": torch.float32, "bf16": torch.bfloat16, True: torch.bfloat16, False: torch.float32}


def test_seeds_of_neighbours_differ():
    seeds = {seed_at(seed, position) for seed in range(20) for position in range(200)}
    assert len(seeds) == 4000
    assert seed_at(3, 5) == seed_at(3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps 0 was given; expected at least 1"),
        ({"lr": 0.0}, "lr 0.0, warmup 0.1"),
        ({"warmup": 1.0}, r"warmup in \[0, 1\)"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; known: cosine, linear; did you mean 'cosine'"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; known: adamw, sgd; did you mean 'adamw'"),
        ({"accumulate": 0}, "accumulate 0 was given; expected at least 1"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(MultiflowError, match=message):
        replace(SETTINGS, **change)
