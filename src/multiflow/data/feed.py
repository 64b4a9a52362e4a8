"""Batches for the training loop: made ahead of time, moved to the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

Batch: TypeAlias = Mapping[str, Any]


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


def model_loss(model: nn.Module, batch: Batch, position: int) -> tuple[Tensor, Mapping[str, Tensor | float]]:
    """Return the loss that a model computes of a batch, and no figures; in the form of `train`."""
    return model(**batch).loss, {}


def batch_size(batch: Batch) -> int:
    """Number of rows of the first tensor of a batch."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor)), 1)
