"""The one training loop for model weights: pretraining and every fine-tuning run through `train`.

Batches, losses and seeds are functions of a position, never of a running generator: a run that is killed and resumed
ends with the same bits as one that was not. A step takes ``accumulate`` positions in each process, dealt in rounds. It
is one of AdamW (Loshchilov and Hutter, arXiv 1711.05101) or of SGD with momentum. The learning rate rises linearly
during the warm-up and then falls to zero, along a cosine or a line.

On a CPU, bfloat16 training pays only with the plain form of attention (torch's fused one has a backward many times
slower in bfloat16 than in float32); `compute_in` chooses it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from multiflow.base.errors import MultiflowError
from multiflow.base.parallel import rank, world
from multiflow.base.progress import Progress, Report
from multiflow.base.runs import check_same
from multiflow.calibration import to_device
from multiflow.data.sampling import seed_at
from multiflow.masks import Masks, keep_sparse
from multiflow.tasks.task import Batch, Loss
from multiflow.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from multiflow.training.processes import (
    average_figures,
    average_gradients,
    clip_gradients,
    hold_gradients,
    split_model,
    whole,
)
from multiflow.training.settings import Precision, TrainSettings
from multiflow.training.tracking import Meter, track_metrics

FREE_TO_CHANGE = (
    "checkpoint_every",
    "evaluate_every",
    "log_every",
    "prefetch",
    "wandb",
)  # these do not alter the weights of a run


@dataclass(frozen=True)
class Validation:
    """What to do with the model on the way, in every process."""

    evaluate: Callable[[], Mapping[str, float]]  # () -> figures of the model, which are tracked under ``val/``
    # (step, figures) -> nothing; may store the model, whose zeros were checked before
    keep: Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """What a finished run reports."""

    steps: int  # optimizer steps done, those before a resume included
    seconds: float  # time they took, those before a resume included
    metrics: Mapping[str, float]  # the last line of metrics


def train(
    model: nn.Module,
    batch: Callable[[int], Batch],
    loss: Loss,
    settings: TrainSettings,
    run_dir: Path,
    *,
    resume: bool = False,
    progress: Report | None = None,
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
    # 1. where the run stands
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
            # 2. gradients of the batches of a step, averaged
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
            # 3. one step of the optimizer
            norm = clip_gradients(model, settings.clip)
            _check_finite(run_dir.name, step, value, norm, settings)
            optimizer.step()
            # 4. what is due: a line of metrics, an evaluation, a checkpoint
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
    fix = "resume it with its own settings, or choose another folder"
    check_same(f"'{run_dir}'", state["settings"], identity, fix=fix)
    return state


@contextmanager
def prefetched(batch: Callable[[int], Batch], positions: range, ahead: int) -> Iterator[Iterator[Batch]]:
    """Yield the batches of ``positions`` in order, made in a background thread.

    At least one and at most ``ahead`` batches are made early; an error in ``batch`` is raised where that batch is due.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def stream() -> Iterator[Batch]:
        waiting = deque(pool.submit(batch, position) for position in positions[:ahead])
        for upcoming in range(ahead, ahead + len(positions)):
            if upcoming < len(positions):
                waiting.append(pool.submit(batch, positions[upcoming]))
            yield waiting.popleft().result()

    try:
        yield stream()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batch_size(batch: Batch) -> int:
    return next((len(value) for value in batch.values() if isinstance(value, Tensor)), 1)


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


MOMENTUM = 0.9


def make_optimizer(model: nn.Module, settings: TrainSettings, new: Collection[str] = ()) -> torch.optim.Optimizer:
    """Return the optimizer of a run for the parameters of a model; those named in ``new`` learn ``new_lr`` faster."""
    groups = parameter_groups(model, settings.weight_decay, new, settings.new_lr)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, MOMENTUM, foreach=False if settings.shard else None)
    if settings.shard:  # weights that are split and scalars that are not cannot be stepped in one go
        return torch.optim.AdamW(groups, settings.lr, settings.betas, foreach=False)
    return torch.optim.AdamW(groups, settings.lr, settings.betas, fused=True)


def parameter_groups(
    model: nn.Module, weight_decay: float, new: Collection[str] = (), new_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay (two dimensions or more) and those that do not.

    Those named in ``new`` are two groups of their own, whose learning rate is to be multiplied by ``scale``.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = []
    for is_new, scale in ((False, 1.0), (True, new_lr)) if new else ((False, 1.0),):
        of = [p for name, p in trainable if (name in new) == is_new]
        groups += [
            {"params": [p for p in of if p.ndim > 1], "weight_decay": weight_decay, "scale": scale},
            {"params": [p for p in of if p.ndim <= 1], "weight_decay": 0.0, "scale": scale},
        ]
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Learning rate of a step, counted from 1: linear warm-up, then down to zero just after the last step.

    >>> settings = TrainSettings(steps=4, lr=1.0, warmup=0.5, schedule="linear")
    >>> [round(learning_rate(settings, step), 2) for step in (1, 2, 3, 4)]
    [0.5, 1.0, 0.67, 0.33]
    """
    warmup = round(settings.warmup * settings.steps)
    if step <= warmup:
        return settings.lr * step / warmup
    done = (step - warmup) / (settings.steps - warmup + 1)
    return settings.lr * ((1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done)
