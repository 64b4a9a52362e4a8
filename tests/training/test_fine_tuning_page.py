"""The page on fine-tuning: its programs run, one after the other, and its commands are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from multiflow.cli import COMMANDS
from multiflow.cli.settings import parse

PAGE = (Path(__file__).parents[2] / "docs/fine-tuning.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


def zeros(names):
    return {name: names["model"].get_submodule(name).weight[~mask] for name, mask in names["masks"].items()}


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_each_loop_trains_and_keeps_the_zeros(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    before = None
    for program in PROGRAMS:
        exec(compile(program, "docs/fine-tuning.md", "exec"), names)
        after = names["model"].vit.layers[0].attention.q_proj.weight.detach().clone()
        assert before is None or not torch.equal(after, before)
        before = after
        for name, dropped in zeros(names).items():
            assert len(dropped)
            assert not dropped.any(), name
    assert len(PROGRAMS) == 4
    assert names["trainer"].state.global_step == 4


def test_the_commands_are_understood():
    commands = re.findall(r"^multiflow (finetune .*)$", PAGE, flags=re.M)
    assert commands
    for line in commands:
        name, *args = line.split()
        settings = parse(COMMANDS[name].load()[0], COMMANDS[name], args)
        assert settings.training.preset == "shapes"
