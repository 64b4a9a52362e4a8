from __future__ import annotations

import builtins

import pytest
import torch
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.base.guards import check_values
from multiflow.calibration import check_rows_fit, gradients, memory

CPU = torch.device("cpu")


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A container's files, with a machine that has much more memory."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_machine", lambda: 1 << 40)  # another machine

    def write(limit, used=0, cached=0):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 7\n")

    return write


def test_the_limit_of_a_container_counts_what_it_could_give_back_as_free(container):
    container(limit=1000, used=600, cached=100)
    assert memory.free_memory(CPU) == 500


@pytest.mark.parametrize("limit", ["max", "nonsense"])
def test_without_a_limit_the_machine_counts(container, limit):
    container(limit)
    assert memory.free_memory(CPU) == 1 << 40


def test_without_the_files_of_a_container_the_machine_counts(container):
    assert memory.free_memory(CPU) == 1 << 40


def test_nobody_knows(container, monkeypatch):
    monkeypatch.setattr(memory, "_machine", lambda: None)  # one that says nothing
    assert memory.free_memory(CPU) is None
    assert memory.free_memory(torch.device("meta")) is None


def test_this_machine_has_some():
    free = memory.free_memory(CPU)
    assert free is None or 0 < free < 1 << 50


def test_no_figure_without_psutil(monkeypatch):
    imports = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *a: imports("none" if name == "psutil" else name, *a))
    assert memory._machine() is None  # a container would answer in its place


def test_rows_that_do_not_fit_are_refused_with_the_number_that_does(monkeypatch):
    weights = {"a": nn.Parameter(torch.empty(1 << 15, 1 << 13, device="meta"))}  # a row of it: 1 GiB
    extra = gradients.HEADROOM
    monkeypatch.setattr(gradients, "free_memory", lambda device: (extra + 7) << 30)
    assert check_rows_fit(weights, 7) == (f"7 gradient rows and {extra} more to work with", (extra + 7) << 30)
    said = (
        f"8 gradient rows of 1.00 GiB and {extra} more to work with need {extra + 8}.0 GiB of memory, and {extra + 7}.0"
    )
    with pytest.raises(MultiflowError, match=f"^{said} GiB are free; .*give batches_per_step=7$"):
        check_rows_fit(weights, 8)
    monkeypatch.setattr(gradients, "free_memory", lambda device: extra << 30)
    with pytest.raises(MultiflowError, match="not even one row fits"):
        check_rows_fit(weights, 1)
    monkeypatch.setattr(gradients, "free_memory", lambda device: None)
    assert check_rows_fit(weights, 1000)[1] == (extra + 1000) << 30


def test_later_steps_hold_more_than_the_first(monkeypatch):
    weights = {"a": nn.Parameter(torch.empty(1 << 15, 1 << 13, device="meta"))}
    most = gradients.HEADROOM + gradients.LATER
    monkeypatch.setattr(gradients, "free_memory", lambda device: (most + 7) << 30)
    assert check_rows_fit(weights, 7, steps=2)[1] == (most + 7) << 30
    assert check_rows_fit(weights, 7 + gradients.LATER, steps=1)[1] == (most + 7) << 30
    with pytest.raises(MultiflowError, match="at most 7 rows fit"):
        check_rows_fit(weights, 8, steps=2)


def test_what_the_allocator_holds_of_a_gpu_and_nobody_uses_is_free(monkeypatch):
    figures = {"mem_get_info": (100, 1000), "memory_reserved": 70, "memory_allocated": 40}
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, figure=figure: figure)
    assert memory.free_memory(torch.device("cuda")) == 130


def test_weights_without_values_are_refused():
    weights = {"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.empty(2, device="meta"))}
    check_values({"a": weights["a"]})
    with pytest.raises(MultiflowError, match="layer 'b' is on the meta device, without values"):
        check_values(weights)
