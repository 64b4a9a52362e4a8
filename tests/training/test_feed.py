from __future__ import annotations

import threading
import time

import pytest
import torch

from multiflow.calibration import to_device
from multiflow.training.loop import batch_size, prefetched


def test_batches_come_in_order_and_at_most_ahead_of_time():
    made: list[int] = []

    def batch(position: int) -> dict[str, int]:
        made.append(position)
        return {"position": position}

    got = []
    with prefetched(batch, range(3, 12), ahead=2) as stream:
        for item in stream:
            assert len(made) <= len(got) + 3  # the one in hand and two ahead
            got.append(item["position"])
    assert got == made == list(range(3, 12))


def test_batches_are_made_in_the_background():
    threads = set()

    def batch(position: int) -> dict[str, int]:
        threads.add(threading.current_thread())
        return {}

    with prefetched(batch, range(3), ahead=5) as stream:
        next(stream)
        deadline = time.monotonic() + 5
        while len(threads) < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert threads
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_leaving_early_makes_no_more_batches():
    made: list[int] = []
    with prefetched(lambda position: made.append(position) or {}, range(100), ahead=2) as stream:
        next(stream)
    assert len(made) <= 4


def test_an_error_is_raised_where_the_batch_is_due():
    def batch(position: int) -> dict[str, int]:
        if position == 2:
            raise ValueError("no such image")
        return {"position": position}

    with prefetched(batch, range(5), ahead=4) as stream:
        assert [next(stream)["position"] for _ in range(2)] == [0, 1]
        with pytest.raises(ValueError, match="no such image"):
            next(stream)


def test_no_positions_no_batches():
    with prefetched(lambda position: {}, range(4, 4), ahead=3) as stream:
        assert list(stream) == []


def test_nested_batches_move_and_are_counted():
    batch = {"name": "x", "x": torch.zeros(3, 2), "region": {"boxes": torch.zeros(5, 4)}}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"].is_meta
    assert moved["region"]["boxes"].is_meta
    assert moved["name"] == "x"
    assert not batch["x"].is_meta
    assert batch_size(batch) == 3
