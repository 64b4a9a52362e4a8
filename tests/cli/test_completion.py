"""Completion in shells: scripts know every command and every option; bash, where it is, completes by its own."""

from __future__ import annotations

import re
import shutil

import pytest

from multiflow.cli import COMMANDS
from multiflow.cli.completion import SHELLS, known_words
from multiflow.methods import PRUNERS
from tests import processes

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def known():
    return known_words()


@pytest.fixture(scope="module")
def script(known, tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "multiflow.bash"
    path.write_text(SHELLS["bash"](known))
    return path


def test_every_command_has_its_options(known):
    assert set(known) == set(COMMANDS)
    assert {"--help", "--method", "--sparsity", "--resume", "--out", "--data"} <= set(known["prune"].options)
    assert {"--preset", "--mask", "--epochs", "--mask-decoder"} <= set(known["finetune"].options)
    assert known["prune"].options["--out"] is True
    assert known["prune"].options["--resume"] is False
    assert all("--help" in words.options for words in known.values())


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_each_shell_names_commands_options_and_pruners(known, shell):
    said = SHELLS[shell](known)
    for name, words in known.items():
        assert all(re.search(rf"(?<![\w-]){part}(?![\w-])", said) for part in name.split())
        for option in words.options:
            assert option.removeprefix("--") in said
    assert all(name in said for name in PRUNERS)


def test_the_command_prints_it_and_refuses_other_shells(run):
    done = run("completion", "fish")
    assert done.code == 0
    assert done.out.startswith("# fish completion of multiflow\n")
    assert "known: bash, zsh, fish" in run("completion", "tcsh").error


@pytest.mark.skipif(BASH is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("multiflow pru", ["prune"]),
        ("multiflow bench r", ["run", "report"]),
        ("multiflow bench run --eng", ["--engine", "--engine-set"]),
        ("multiflow prune xvlm", ["xvlm-shapes"]),
        ("multiflow prune xvlm-shapes --method mag", ["magnitude", "magnitude-layer", "magnitude-modality"]),
        ("multiflow compare x --pattern 2", ["2:4"]),
        ("multiflow prune --check", ["--checkpoint-every"]),
        ("multiflow finetune retr", ["retrieval"]),
        ("multiflow apply some", ["some.safetensors"]),
    ],
)
def test_bash_completes(script, tmp_path, line, expected):
    (tmp_path / "some.safetensors").touch()
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    code = f'source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _multiflow; echo "${{COMPREPLY[@]}}"'
    done = processes.run(BASH, "-c", code, check=True, cwd=tmp_path)
    assert sorted(done.stdout.split()) == sorted(expected)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(known, tmp_path, shell):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell}")
    (tmp_path / "script").write_text(SHELLS[shell](known))
    processes.run(program, "-n", tmp_path / "script", check=True)
