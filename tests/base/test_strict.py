from __future__ import annotations

from dataclasses import dataclass

from multiflow.base.strict import flags


@dataclass(frozen=True)
class Plan:
    lr: float = 0.1
    checkpoint_every: int = 5
    mlp: int | None = None


def test_flags_name_what_differs_from_the_defaults():
    assert flags(Plan()) == ""
    assert flags(Plan(lr=0.5, checkpoint_every=7, mlp=8)) == " --lr 0.5 --checkpoint-every 7 --mlp 8"
