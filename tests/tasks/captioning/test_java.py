from __future__ import annotations

import sys

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.tasks.captioning import java
from tests.tasks.captioning.test_metrics import needs_java

pytest.importorskip("pycocoevalcap")

COUNTS = """
import sys
for line in sys.stdin:
    kind, *rest = line.rstrip("\\n").split(" ||| ")
    print(*(f"{len(rest)}{'*' * ('  ' in line)}" for _ in range(1 if kind == "SCORE" else len(rest))), sep="\\n")
    if kind == "EVAL":
        print(0.125)
    sys.stdout.flush()
"""


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    """Put a program in Java's place."""

    def write(source: str) -> None:
        program = tmp_path / "java"
        program.write_text(f"#!{sys.executable}\n{source}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return write


@needs_java
def test_the_official_words():
    texts = ["A Man's café — “two” dogs, isn't it?", "", "3/4 (b) $5.00; U.S.A...", "...", "last", ""]
    assert java.ptb_tokenize(texts) == [
        "a man 's café two dogs is n't it",
        "",
        "3/4 -lrb- b -rrb- $ 5.00 u.s.a.",
        "",
        "last",
        "",
    ]


@needs_java
def test_a_line_break_of_any_kind_does_not_shift_the_captions():
    texts = ["a\rb", "c\r\nd", "e\u2028f", "g\x85h", "i\x0cj", "k\nl", "last"]
    assert java.ptb_tokenize(texts) == ["a b", "c d", "e f", "g h", "i j", "k l", "last"]


def test_meteor_is_asked_line_by_line(fake_java):
    fake_java(COUNTS)
    assert java.meteor({0: ["a", "b"], 1: ["c"]}, {0: ["d"], 1: [""]}) == 0.125


@pytest.mark.parametrize(
    "source",
    ["import sys; sys.exit('boom')", "import sys; sys.stdin.readline(); sys.exit('boom')", "no python"],
)
def test_a_program_that_fails_ends_in_a_sentence(fake_java, source):
    fake_java(source)
    with pytest.raises(MultiflowError, match=r"METEOR, .* failed \(.+\); .*'java -version'"):
        java.meteor({0: ["a"]}, {0: ["b"]})
    with pytest.raises(MultiflowError, match=r"the PTB tokenizer, a Java program, failed \(.+\)"):
        java.ptb_tokenize(["a"])


def test_words_that_do_not_come_back_line_by_line_are_an_error(fake_java):
    fake_java("print('a'); print('b')")
    with pytest.raises(MultiflowError, match="the PTB tokenizer"):
        java.ptb_tokenize(["a b"])


def test_a_program_that_is_not_there_ends_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MultiflowError, match="No such file"):
        java.meteor({0: ["a"]}, {0: ["b"]})
    with pytest.raises(MultiflowError, match="No such file"):
        java.ptb_tokenize(["a"])
