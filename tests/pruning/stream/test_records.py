"""What is carried from block to block: values with tensors in them, on the disk."""

from typing import NamedTuple

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from multiflow.base.errors import MultiflowError
from multiflow.pruning.stream.records import CannotStore, Replay, let_go, read_record, write_record


class Pair(NamedTuple):
    a: object
    b: object


def read(path):
    return read_record(path, Replay(torch.device("cpu")))


def test_values_come_back_with_their_forms_types_and_strides(tmp_path):
    x = torch.randn(64, 3, 50)
    value = {
        "turned": x.transpose(0, 1),
        "spread": x[:, :1].expand(64, 4, 50),
        "output": BaseModelOutput(last_hidden_state=x.bfloat16(), hidden_states=(x, x)),
        "pair": Pair([None, 3, "text", True, 0.5], torch.arange(5)),
        "number": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
    }
    write_record(tmp_path / "a.act", value)
    found = read(tmp_path / "a.act")
    for name in ("turned", "spread", "number", "empty"):
        assert torch.equal(found[name], value[name])
    assert found["turned"].stride() == value["turned"].stride()
    assert found["spread"].stride()[1] == 0
    assert type(found["output"]) is BaseModelOutput
    assert found["output"].last_hidden_state.dtype == torch.bfloat16
    assert torch.equal(found["output"].last_hidden_state, value["output"].last_hidden_state)
    assert found["output"].hidden_states[0] is found["output"].hidden_states[1]
    assert type(found["pair"]) is Pair
    assert found["pair"].a == value["pair"].a
    assert torch.equal(found["pair"].b, torch.arange(5))


def test_a_large_tensor_is_read_when_something_computes_with_it(tmp_path):
    write_record(tmp_path / "a.act", [torch.ones(100, 100), torch.ones(100, 100)])
    let_go(tmp_path / "a.act")
    first, second = read(tmp_path / "a.act")  # the bytes are gone, the forms are there
    assert first.shape == second.shape == (100, 100)
    with pytest.raises(MultiflowError, match="are gone"):
        first + 1


def test_what_was_looked_at_or_is_held_is_not_idle(tmp_path):
    paths = [tmp_path / f"{name}.act" for name in ("held", "looked_at", "handed_on")]
    for path in paths:
        write_record(path, torch.ones(100, 100))
    reading = Replay(torch.device("cpu"))
    held, looked_at, handed_on = (read_record(path, reading) for path in paths)
    assert reading.idle() == set()
    assert float(looked_at.sum()) == 10_000
    del looked_at, handed_on
    assert reading.idle() == {paths[2]}
    assert held.shape == (100, 100)


def test_what_was_written_to_a_tensor_is_kept(tmp_path):
    write_record(tmp_path / "a.act", torch.zeros(100, 100))
    found = read(tmp_path / "a.act")
    found[:, 0] = 2
    found.add_(1)
    write_record(tmp_path / "b.act", found)
    assert read(tmp_path / "b.act").sum() == 10_000 + 200


def test_a_record_may_name_the_tensors_of_another(tmp_path):
    write_record(tmp_path / "a.act", torch.arange(10_000.0))
    write_record(tmp_path / "b.act", {"again": read(tmp_path / "a.act")})
    assert (tmp_path / "b.act").stat().st_size < 1000
    assert torch.equal(read(tmp_path / "b.act")["again"], torch.arange(10_000.0))


@pytest.mark.parametrize("value", [{1, 2}, {3: torch.ones(1)}, torch.ones(2, 2).to_sparse(), object()])
def test_other_values_are_refused(value, tmp_path):
    with pytest.raises(CannotStore):
        write_record(tmp_path / "a.act", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", [3, 12, 30, -100])  # the length of the form, its checksum, the form, the bytes
def test_altered_records_are_noticed(tmp_path, at):
    write_record(tmp_path / "a.act", torch.ones(100, 100))
    data = bytearray((tmp_path / "a.act").read_bytes())
    data[at] ^= 1
    (tmp_path / "a.act").write_bytes(data)
    with pytest.raises(MultiflowError, match=r"a.act' was altered.*begin afresh"):
        read(tmp_path / "a.act").sum()
