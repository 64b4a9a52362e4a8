from __future__ import annotations

import threading
import time

import pytest
import torch

from multiflow.base import parallel
from multiflow.base.parallel import in_parallel


class Watch:
    """How many items are at work at once, and in which threads."""

    def __init__(self) -> None:
        self.now, self.most, self.threads, self.lock = 0, 0, set(), threading.Lock()

    def __call__(self, item: int) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.threads.add(threading.get_ident())
        time.sleep(0.01)
        with self.lock:
            self.now -= 1
        return -item


@pytest.mark.parametrize(("threads", "most"), [(1, 1), (3, 3), (64, parallel.MOST)])
def test_at_most_as_many_at_once_as_torch_has_threads_and_never_many(threads, most, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    watch = Watch()
    assert list(in_parallel(watch, range(40))) == [-item for item in range(40)]
    assert watch.most <= most
    assert len(watch.threads) <= most
    assert (len(watch.threads) > 1) == (threads > 1)


def test_with_a_gpu_at_work_they_take_turns(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    watch = Watch()
    assert list(in_parallel(watch, range(5))) == [-item for item in range(5)]
    assert watch.threads == {threading.get_ident()}


def test_an_error_ends_it(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(lambda item: 1 / item, [1, 0, 2]))
