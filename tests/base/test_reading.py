from __future__ import annotations

import os
from pathlib import Path

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.base.files import parse_json, parse_yaml, read_json, read_regular, read_yaml


def test_json_and_json_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2]}')
    assert read_json(path) == {"a": [1, 2]}
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_json(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": "x\u2028y"}\n{"a": 2}\n', encoding="utf-8")
    assert read_json(path) == [{"a": "x\u2028y"}, {"a": 2}]
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_json_lines_are_a_list_also_when_there_is_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n')
    assert read_json(path) == [{"a": 1}]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{"a": 1,\n "b" 2}', "line 2, column 6"),
        ('{"a": 1}\n{"a" 2}\n', "line 2, column 6"),
        ('[{"a": 1}, {"a"', "line 1, column 16"),
        ('{"a": 1} x', "line 1, column 10"),
        ("", "line 1, column 1"),
    ],
)
def test_bad_json_is_located(tmp_path, content, place):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(MultiflowError, match=f"a.json' is not valid JSON: .* at {place};"):
        read_json(path)


@pytest.mark.parametrize("depth", [5_000, 100_000])
@pytest.mark.parametrize("text", ["[", '{"a":'])
def test_what_is_nested_too_deeply_is_an_error(depth, text):
    closing = {"[": "]", "{": "}"}[text[0]]
    with pytest.raises(MultiflowError, match="'f'"):
        parse_json(text * depth + ("1" if text[0] == "{" else "") + closing * depth, "'f'")
    with pytest.raises(MultiflowError, match="'f'"):
        parse_yaml((text + " ") * 2_000, "'f'")


def test_numbers_of_thousands_of_digits():
    for parse in (parse_json, parse_yaml):
        with pytest.raises(MultiflowError, match="'f'"):
            parse("9" * 5_000, "'f'")


def test_half_of_a_character_is_replaced():
    assert parse_json(r'["a \ud83d b", "\ud83d\ude00", "\\ud83d"]', "'f'") == ["a � b", "😀", r"\ud83d"]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'"\xff"')
    with pytest.raises(MultiflowError, match=r"not UTF-8 text \(byte 1\)"):
        read_json(tmp_path / "a.json")
    for name, reason in (
        ("b.json", "No such file"),
        ("a\0b.json", r"b.json': no file can have"),
        ("\ud800", "no file"),
    ):
        with pytest.raises(MultiflowError, match=reason) as error:
            read_json(tmp_path / name)
        str(error.value).encode()


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError):
            read_regular(path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="more than the 10 "):
        read_regular(tmp_path / "sparse", 10)
    with pytest.raises(MultiflowError, match="more than the"):
        read_yaml(tmp_path / "sparse")


@pytest.mark.parametrize("number", ["0x" + "f" * 5_000, "0b" + "1" * 20_000, "1:" * 9_000 + "1", "9" * 5_000])
def test_yaml_with_a_number_of_thousands_of_digits(number):
    """Hexadecimal ones have no limit in Python until they are to be said in a message."""
    with pytest.raises(MultiflowError, match="it is no YAML"):
        parse_yaml(f"a: {number}", "it")
    assert parse_yaml("0x" + "f" * 100, "it") == 16**100 - 1


def test_half_of_a_character_in_yaml_is_replaced():
    assert parse_yaml(r'["a\ud800b", "é"]', "it") == ["a\ufffdb", "é"]


def test_yaml_of_plain_values():
    text = "a: 1e-4\nb: 2001-99-99\nc: &c {d: [1, yes, ~]}\ne: {<<: *c, f: x}"
    inner = {"d": [1, True, None]}
    assert parse_yaml(text, "'f'") == {"a": 1e-4, "b": "2001-99-99", "c": inner, "e": {**inner, "f": "x"}}


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "&a [*a]",
        "&a {b: *a}",
        "!!int x",
        '!!int ""',
        "!!bool x",
        "!!float x",
        "!!timestamp x",
        "!!binary x",
        "!!set {a, b}",
        "!!python/object/apply:os.getcwd []",
        "!mine x",
        "? [a]\n: b",
        "<<: 3",
        "a: =",
        "\0",
        "[",
        "{a: 1, a: 2}",
    ],
)
def test_yaml_that_is_refused(text):
    with pytest.raises(MultiflowError, match="'f' is no YAML"):
        parse_yaml(text, "'f'")
