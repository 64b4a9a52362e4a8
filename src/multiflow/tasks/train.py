"""The one training loop for model weights: pretraining and every fine-tuning run through `train`.

AdamW (Loshchilov and Hutter, arXiv 1711.05101); the learning rate rises linearly during the warm-up and then falls to
zero, along a cosine or a line. Batches, losses and seeds are functions of a position, never of a running generator:
a run that is killed and resumed ends with the same bits as one that was not.

On a CPU, bfloat16 training pays only with the plain form of attention (torch's fused one has a backward many times
slower in bfloat16 than in float32); `compute_in` chooses it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from multiflow.errors import MultiflowError
from multiflow.tasks.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from multiflow.tasks.progress import Progress, Report
from multiflow.tasks.tracking import track_metrics

Batch: TypeAlias = Mapping[str, Any]
Loss: TypeAlias = Callable[[nn.Module, Batch, int], tuple[Tensor, Mapping[str, Tensor | float]]]
Precision: TypeAlias = Literal["auto", "fp32", "bf16"]

FREE_TO_CHANGE = ("checkpoint_every", "log_every", "prefetch")  # these do not alter the weights of a run


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
        precision: ``fp32``, ``bf16`` (weights stay float32), or ``auto``: bf16 where the device computes it faster.
        seed: seeds dropout and whatever else the loss draws.
        checkpoint_every: steps between checkpoints.
        log_every: steps between two lines of metrics.
        prefetch: batches made ahead of time in the background.
    """

    steps: int
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.1
    schedule: Literal["cosine", "linear"] = "cosine"
    clip: float = 1.0
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    prefetch: int = 4


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
) -> Trained:
    """Train ``model`` in place, with checkpoints and metrics in ``run_dir``.

    Args:
        model: any module, on the device to train on.
        batch: position -> batch (tensors, or mappings of them); called in a background thread.
        loss: ``(model, batch, position)`` -> scalar to minimise and figures to log.
        settings: see `TrainSettings`.
        run_dir: holds ``step-*`` checkpoints, ``metrics.jsonl`` and TensorBoard's files; its name is the stage shown.
        resume: go on from the latest checkpoint of ``run_dir``, or start if there is none.
        progress: called with a `Progress` after every step.
        after_step: called with the number of steps done, after the optimizer and before a checkpoint: the place to
            put pruned weights back to zero.

    Raises:
        MultiflowError: the folder holds a run and ``resume`` is off, or a run with other settings; the loss or the
            gradient is not finite (nothing is saved then).
    """
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), settings.lr, settings.betas, fused=True)
    identity = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items() if k not in FREE_TO_CHANGE}
    state = _start(run_dir, model, optimizer, identity, resume)
    first, seconds, latest = state["step"], state["seconds"], state["metrics"]
    device = next(model.parameters()).device
    sums: dict[str, Tensor | float] = {}
    counted, began, logged_at = 0, time.monotonic(), time.monotonic()

    with ExitStack() as stack:
        track = stack.enter_context(track_metrics(run_dir, first))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        batches = stack.enter_context(prefetched(batch, range(first, settings.steps), settings.prefetch))
        model.train()
        samples = 0
        for step, inputs in enumerate(batches, first + 1):
            rate = learning_rate(settings, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(seed_at(settings.seed, step - 1))
            with compute_in(settings.precision, device):
                value, figures = loss(model, to_device(inputs, device), step - 1)
            optimizer.zero_grad()
            value.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            if not (math.isfinite(value.item()) and math.isfinite(norm.item())):
                raise MultiflowError(
                    f"{run_dir.name}: loss {value.item()} and gradient norm {norm.item()} at step {step}; expected finite "
                    f"numbers; lower the learning rate ({settings.lr:g}) or use precision 'fp32', and resume"
                )
            optimizer.step()
            if after_step is not None:
                after_step(step)

            for name, figure in {"loss": value, "grad_norm": norm, **figures}.items():
                sums[name] = sums.get(name, 0.0) + (figure.detach() if isinstance(figure, Tensor) else figure)
            counted, samples = counted + 1, samples + batch_size(inputs)
            due = step % settings.checkpoint_every == 0 or step == settings.steps
            if due or step % settings.log_every == 0:  # a line never straddles a checkpoint: resuming repeats it exactly
                now = time.monotonic()
                pace = {"lr": rate, "rate": samples / (now - logged_at), "seconds": seconds + now - began}
                latest = {name: float(total) / counted for name, total in sums.items()} | pace
                track(step, latest)
                sums, counted, samples, logged_at = {}, 0, 0, now
            if due:
                elapsed = seconds + time.monotonic() - began
                state = {"seconds": elapsed, "metrics": latest, "settings": identity}
                save_checkpoint(run_dir, step, model, optimizer, state)
            if progress is not None:
                eta = (time.monotonic() - began) / (step - first) * (settings.steps - step)
                progress(Progress(run_dir.name, step, settings.steps, latest.get("rate", 0.0), eta, latest))
        seconds += time.monotonic() - began
    return Trained(settings.steps, state["seconds"], latest)


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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay (two dimensions or more) and those that do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay}
    return [decayed, {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0}]


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Learning rate of a step, counted from 1: linear warm-up, then down to zero just after the last step.

    >>> [round(learning_rate(TrainSettings(steps=4, lr=1.0, warmup=0.5, schedule="linear"), s), 2) for s in (1, 2, 3, 4)]
    [0.5, 1.0, 0.67, 0.33]
    """
    warmup = round(settings.warmup * settings.steps)
    if step <= warmup:
        return settings.lr * step / warmup
    done = (step - warmup) / (settings.steps - warmup + 1)
    return settings.lr * ((1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done)


def seed_at(seed: int, position: int) -> int:
    """Mix a seed and a position into one seed; neighbours have nothing in common."""
    return hash((seed, position, 0x9E3779B97F4A7C15)) & 0x7FFFFFFF


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
    cpu = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16"))


@contextmanager
def prefetched(batch: Callable[[int], Batch], positions: range, ahead: int) -> Iterator[Iterator[Batch]]:
    """Yield the batches of ``positions`` in order, up to ``ahead`` of them made early in a background thread.

    An error in ``batch`` is raised where that batch is due.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def stream() -> Iterator[Batch]:
        waiting = deque(pool.submit(batch, position) for position in positions[:ahead])
        for position in positions:
            upcoming = position + max(ahead, 0)
            if upcoming < positions.stop:
                waiting.append(pool.submit(batch, upcoming))
            yield waiting.popleft().result()

    try:
        yield stream()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch, and of the batches in it, to ``device``."""
    move = lambda x: to_device(x, device) if isinstance(x, Mapping) else x.to(device) if isinstance(x, Tensor) else x  # noqa: E731
    return {name: move(value) for name, value in batch.items()}


def batch_size(batch: Batch) -> int:
    """Number of rows of the first tensor of a batch."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor)), 1)
