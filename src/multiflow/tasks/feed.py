"""Batches for the training loop: made ahead of time, moved to the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = Mapping[str, Any]


@contextmanager
def prefetched(batch: Callable[[int], Batch], positions: range, ahead: int) -> Iterator[Iterator[Batch]]:
    """Yield the batches of ``positions`` in order, made in a background thread.

    At least one and at most ``ahead`` batches are made early; an error in ``batch`` is raised where that batch is due.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def stream() -> Iterator[Batch]:
        waiting = deque(pool.submit(batch, position) for position in positions[:ahead])
        for position in positions:
            upcoming = position + ahead
            if upcoming < positions.stop:
                waiting.append(pool.submit(batch, upcoming))
            yield waiting.popleft().result()

    try:
        yield stream()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch, and of the batches in it, to ``device``."""

    def move(value: Any) -> Any:
        if isinstance(value, Mapping):
            return to_device(value, device)
        return value.to(device) if isinstance(value, Tensor) else value

    return {name: move(value) for name, value in batch.items()}


def batch_size(batch: Batch) -> int:
    """Number of rows of the first tensor of a batch."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor)), 1)
