"""The one training loop for model weights: pretraining and every fine-tuning run through `train`.

Batches, losses and seeds are functions of a position, never of a running generator: a run that is killed and resumed
ends with the same bits as one that was not. A step takes ``accumulate`` positions in each process, dealt in rounds.

On a CPU, bfloat16 training pays only with the plain form of attention (torch's fused one has a backward many times
slower in bfloat16 than in float32); `compute_in` chooses it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.progress import Progress, Report
from multiflow.base.ranks import rank, world
from multiflow.calibration import to_device
from multiflow.data.feed import Batch, batch_size, prefetched
from multiflow.masks import Masks, keep_sparse
from multiflow.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from multiflow.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from multiflow.training.processes import (
    average_figures,
    average_gradients,
    clip_gradients,
    hold_gradients,
    split_model,
    whole,
)
from multiflow.training.tracking import Meter, track_metrics

Loss: TypeAlias = Callable[[nn.Module, Batch, int], tuple[Tensor, Mapping[str, Tensor | float]]]
Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
Schedule: TypeAlias = Literal["cosine", "linear"]
Optimizer: TypeAlias = Literal["adamw", "sgd"]

FREE_TO_CHANGE = (
    "checkpoint_every",
    "evaluate_every",
    "log_every",
    "prefetch",
    "wandb",
)  # these do not alter the weights of a run


@dataclass(frozen=True)
class TrainSettings:
    """How to train; equal settings, model and data give equal weights.

    Args:
        steps: optimizer steps.
        lr: highest learning rate.
        weight_decay: AdamW's decay, applied to matrices and embeddings but not to norms, biases and scalars.
        betas: AdamW's decay rates of the two moments.
        warmup: share of the steps during which the learning rate rises.
        schedule: how it falls to zero afterwards, ``cosine`` or ``linear``.
        clip: largest norm of the gradient; a larger one is scaled down to it.
        optimizer: ``adamw``, or ``sgd`` with momentum.
        new_lr: factor on the learning rate of parameters that are new.
        accumulate: batches whose gradients are averaged in a step, in each process.
        shard: split weights, gradients and the optimizer's state among the processes (FSDP).
        precision: ``fp32``, ``bf16`` (weights stay float32), or ``auto``: bf16 where the device computes it faster.
        seed: seeds dropout and whatever else the loss draws.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between two evaluations; there is one after the last step too.
        log_every: steps between two lines of metrics.
        prefetch: batches made ahead of time in the background.
        wandb: project of Weights & Biases that gets the metrics too.
    """

    steps: int
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.1
    schedule: Schedule = "cosine"
    clip: float = 1.0
    optimizer: Optimizer = "adamw"
    new_lr: float = 1.0
    accumulate: int = 1
    shard: bool = False
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_every: int = 500
    evaluate_every: int = 500
    log_every: int = 20
    prefetch: int = 4
    wandb: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "checkpoint_every", "evaluate_every", "log_every", "prefetch"):
            if (value := getattr(self, name)) < 1:
                raise MultiflowError(f"{name} {value} was given; expected at least 1")
        if not (self.lr > 0 and 0 <= self.warmup < 1 and self.clip > 0):
            raise MultiflowError(
                f"lr {self.lr}, warmup {self.warmup} and clip {self.clip} were given; expected lr and clip "
                f"above 0 and a warmup in [0, 1)"
            )
        for kind, known in (("schedule", Schedule), ("precision", Precision), ("optimizer", Optimizer)):
            if getattr(self, kind) not in get_args(known):
                raise unknown(kind, getattr(self, kind), get_args(known))


@dataclass(frozen=True)
class Validation:
    """What to do with the model on the way, in every process.

    Args:
        evaluate: () -> figures of the model, which are tracked under ``val/``.
        keep: (step, figures) -> nothing; may store the model, whose zeros were checked before.
    """

    evaluate: Callable[[], Mapping[str, float]]
    keep: Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """What a finished run reports.

    Args:
        steps: optimizer steps done, those before a resume included.
        seconds: time they took, those before a resume included.
        metrics: the last line of metrics.
    """

    steps: int
    seconds: float
    metrics: Mapping[str, float]


def train(
    model: nn.Module,
    batch: Callable[[int], Batch],
    loss: Loss,
    settings: TrainSettings,
    run_dir: Path,
    *,
    resume: bool = False,
    progress: Report | None = None,
    after_step: Callable[[int], None] | None = None,
    validation: Validation | None = None,
    masks: Masks | None = None,
    copies: Mapping[str, Sequence[str]] | None = None,
    new: Collection[str] = (),
) -> Trained:
    """Train ``model`` in place, with checkpoints and metrics in ``run_dir``.

    Args:
        model: any module, on the device to train on.
        batch: position (from 0) -> batch of tensors or mappings of them; called in a background thread. With
            ``accumulate`` or several processes a step takes as many positions as it has batches.
        loss: ``(model, batch, position)`` -> scalar to minimise and figures to log.
        settings: see `TrainSettings`.
        run_dir: holds ``step-*`` checkpoints, ``metrics.jsonl`` and TensorBoard's files; its name is the stage shown.
        resume: go on from the latest checkpoint of ``run_dir``, or start if there is none.
        progress: called with a `Progress` after every step.
        after_step: called with the number of steps done, after the optimizer and before a checkpoint.
        validation: what to do every ``evaluate_every`` steps and after the last one, before a checkpoint.
        masks: weights that are zero and stay so, checked after every evaluation and before every save.
        copies: buffers that follow masked weights, see `keep_sparse`.
        new: names of the parameters whose learning rate is multiplied by ``new_lr``.

    Raises:
        MultiflowError: the folder holds a run and ``resume`` is off, or a run with other settings; the loss or the
            gradient is not finite (nothing is saved then).

    >>> model, data = nn.Linear(2, 1), {"x": torch.ones(4, 2)}
    >>> fit = lambda model, batch, position: (model(batch["x"]).square().mean(), {})
    >>> train(model, lambda position: data, fit, TrainSettings(steps=100), Path("runs/fit")).steps  # doctest: +SKIP
    100
    """
    if settings.shard:
        split_model(model)
    optimizer = make_optimizer(model, settings, new)
    state = _start(run_dir, model, optimizer, _identity(settings), resume)
    device = next(model.parameters()).device
    first, last_line, meter = state["step"], state["metrics"], Meter()
    before = state["seconds"]
    began = time.monotonic() - before
    a_step = settings.accumulate * world()  # positions

    with ExitStack() as stack:
        track = stack.enter_context(track_metrics(run_dir, first, write=rank() == 0, wandb=settings.wandb))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        positions = range(first * a_step + rank(), settings.steps * a_step, world())
        batches = stack.enter_context(prefetched(batch, positions, settings.prefetch))
        check_zeros = stack.enter_context(keep_sparse(model, masks, optimizer, copies)) if masks else None
        model.train()
        for step in range(first + 1, settings.steps + 1):
            rate = learning_rate(settings, step)
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad()
            for part in range(settings.accumulate):
                inputs, position = next(batches), positions[(step - first - 1) * settings.accumulate + part]
                torch.manual_seed(seed_at(settings.seed, position))
                with compute_in(settings.precision, device):
                    value, figures = loss(model, to_device(inputs, device), position)
                hold_gradients(model, part + 1 < settings.accumulate)
                (value if settings.accumulate == 1 else value / settings.accumulate).backward()
                meter.add({"loss": value, **figures}, batch_size(inputs))
            average_gradients(model)
            norm = clip_gradients(model, settings.clip)
            _check_finite(run_dir.name, step, value, norm, settings)
            optimizer.step()
            if after_step is not None:
                after_step(step)

            meter.add({"grad_norm": norm}, 0)
            seconds = time.monotonic() - began
            due = step % settings.checkpoint_every == 0 or step == settings.steps
            if due or step % settings.log_every == 0:  # no line straddles a checkpoint: a resumed run repeats it
                last_line = {**average_figures(meter.read()), "lr": rate, "seconds": seconds}
                track(step, last_line)
            if validation is not None and (step % settings.evaluate_every == 0 or step == settings.steps):
                with whole(model):
                    found = validation.evaluate()
                if check_zeros is not None:
                    check_zeros()
                track(step, {f"val/{name}": value for name, value in found.items()})
                validation.keep(step, found)
                model.train()
            if due:
                if check_zeros is not None:
                    check_zeros()
                state = {"step": step, "seconds": seconds, "metrics": last_line, "settings": _identity(settings)}
                save_checkpoint(run_dir, model, optimizer, state)
            if progress is not None:
                eta = (seconds - before) / (step - first) * (settings.steps - step)
                progress(Progress(run_dir.name, step, settings.steps, last_line.get("rate", 0.0), eta, last_line))
    return Trained(state["step"], state["seconds"], state["metrics"])


def _identity(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings on which the weights depend, as they look after a round trip through JSON."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items() if k not in FREE_TO_CHANGE}
    return {**plain, "processes": world()}


def _check_finite(stage: str, step: int, loss: Tensor, norm: Tensor, settings: TrainSettings) -> None:
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise MultiflowError(
            f"{stage}: the loss is {loss.item():g} and its gradient has norm {norm.item():g} at step {step}, expected "
            f"finite numbers; lower the learning rate ({settings.lr:g}) or compute with precision 'fp32'"
        )


def _start(
    run_dir: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any], resume: bool
) -> dict[str, Any]:
    """Load the latest checkpoint, or make the folder for a new run."""
    found = checkpoints(run_dir)
    if not found:
        run_dir.mkdir(parents=True, exist_ok=True)
        return {"step": 0, "seconds": 0.0, "metrics": {}}
    if not resume:
        raise MultiflowError(f"{run_dir} already holds a run ({found[-1].name}); resume it or choose another folder")
    state = load_checkpoint(found[-1], model, optimizer)
    for name, value in identity.items():
        if state["settings"].get(name) != value:
            raise MultiflowError(
                f"{run_dir} was trained with {name}={state['settings'].get(name)}, not {value}; "
                f"resume it with its own settings or choose another folder"
            )
    return state


def seed_at(seed: int, position: int) -> int:
    """Mix a seed and a position into one seed; neighbours have nothing in common."""
    return int(np.random.SeedSequence((seed, position)).generate_state(1)[0])


@contextmanager
def compute_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in float32 or bfloat16 inside the block; ``auto`` takes bfloat16 where the device is faster in it."""
    on_cpu = device.type == "cpu"
    if precision == "auto":
        precision = "bf16" if _bf16_is_faster(device) else "fp32"
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"), ExitStack() as stack:
        if on_cpu and precision == "bf16":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _bf16_is_faster(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16"))
