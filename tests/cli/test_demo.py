from __future__ import annotations

import json
import shlex
from xml.etree import ElementTree

import pytest
from rich.console import Console

import multiflow as mf
from multiflow.bench import demo as bench_demo
from multiflow.cli import main
from multiflow.cli.demo import DemoSettings, check, command_line, result_table
from multiflow.cli.settings import parse
from tests.cli.demo_fixtures import save_tiny_model, tiny_settings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def args(place, tmp_path):
    options = tiny_settings(place, tmp_path / "runs" / "demo", sparsity=(0.9,), method=("multiflow", "random"))
    return shlex.split(command_line(options))[1:]


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_command_writes_masks_numbers_and_report_and_prints_one_table(args, tmp_path, capsys):
    assert main(args) == 0
    out = tmp_path / "runs" / "demo"
    masks = [
        f"masks/{method}/{file}"
        for method in ("multiflow", "random")
        for file in ("mask-0.9.safetensors", "result.json")
    ]
    assert files(tmp_path) == sorted(f"runs/demo/{name}" for name in ("demo.json", "report.html", *masks))
    numbers = json.loads((out / "demo.json").read_text())
    assert numbers["command"] == shlex.join(["multiflow", *args])
    assert sorted(numbers["files"]) == masks
    assert numbers["versions"].keys() >= {"multiflow", "torch", "transformers", "python"}
    assert mf.Masks.load(out / masks[0]).sparsity == numbers["rows"][0]["achieved"] == pytest.approx(0.9, abs=1e-4)
    page = (out / "report.html").read_text()
    assert ElementTree.fromstring(page.removeprefix("<!doctype html>")).tag == "html"
    assert str(tmp_path) not in page.replace(str(tmp_path / "runs" / "demo"), "").replace(
        numbers["settings"]["model"], ""
    )
    said = capsys.readouterr().out
    for row in numbers["rows"]:
        line = next(line for line in said.splitlines() if line.split()[:1] == [row["method"]])
        assert line.split()[1:4] == ["90.0", f"{row['quality']['tr1']:.1f}", f"{row['quality']['ir1']:.1f}"]
    assert "report.html" in said


def test_a_second_demo_takes_the_place_of_the_first(args, tmp_path, capsys):
    out = tmp_path / "runs" / "demo"
    assert main(args) == 0
    first = json.loads((out / "demo.json").read_text())
    assert main([*args, "--seed", "4"]) == 0
    second = json.loads((out / "demo.json").read_text())
    assert (first["settings"]["seed"], second["settings"]["seed"]) == (0, 4)
    assert files(tmp_path / "runs") == sorted(f"demo/{name}" for name in ("demo.json", "report.html", *second["files"]))


@pytest.mark.parametrize("name", ["thesis.tex", "masks/notes.txt"])
def test_a_folder_of_others_is_refused_before_any_work(args, tmp_path, capsys, monkeypatch, name):
    out = tmp_path / "runs" / "demo"
    if "/" in name:  # beside the files of an earlier demo
        assert main(args) == 0
        capsys.readouterr()
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("years of work")
    before = files(tmp_path)
    monkeypatch.setattr(bench_demo, "open_model", lambda *_: pytest.fail("the model was loaded"))
    assert main(args) == 2
    said = capsys.readouterr().err
    assert f"holds '{name}', which no demo wrote" in said
    assert "--out DIR" in said
    assert "Traceback" not in said
    assert files(tmp_path) == before


@pytest.mark.parametrize("content", ["[]", "{", '{"files": 5}'])
def test_a_folder_that_is_no_demo_is_refused(args, tmp_path, capsys, content):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "demo.json").write_text(content)
    assert main(args) == 2
    assert "'demo.json', which no demo wrote" in capsys.readouterr().err


def test_a_file_in_the_way_is_refused(args, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").touch()
    assert main(args) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_failure_half_way_leaves_no_trace(args, tmp_path, monkeypatch):
    calls = []

    def fail_at_the_third(*given, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*given, **options)

    original = bench_demo.evaluate_retrieval
    monkeypatch.setattr(bench_demo, "evaluate_retrieval", fail_at_the_third)
    assert main(args) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ("multiflo",)}, "unknown pruner 'multiflo'.*did you mean 'multiflow'"),
        ({"method": ()}, "--method names no method"),
        ({"sparsity": (63.0,)}, r"sparsity 63\.0 is not in \[0, 1\).*did you mean 0\.63"),
        ({"sparsity": ()}, "empty list"),
        ({"scenes": 1}, "--scenes 1 was given; expected at least 2"),
        ({"batch_size": 0}, "--batch-size 0 was given"),
        ({"examples": -1}, "--examples -1 was given; expected at least 0"),
        ({"device": "tpu9"}, "tpu9"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
    ],
)
def test_bad_settings_are_errors_in_one_sentence(changes, message):
    with pytest.raises(mf.MultiflowError, match=message):
        check(DemoSettings(**changes))


def test_a_method_named_twice_counts_once():
    assert check(DemoSettings(method=("random", "multiflow", "random"))).method == ("random", "multiflow")


def test_the_defaults_are_those_of_the_issue():
    settings = DemoSettings()
    assert settings.method == ("multiflow", "magnitude-modality", "magnitude", "random")
    assert settings.sparsity == (0.63, 0.75, 0.9)
    assert (settings.scenes, settings.shortlist) == (200, 16)
    assert command_line(settings) == "multiflow demo"


def test_the_command_line_repeats_the_run():
    from multiflow.cli import COMMANDS

    settings = DemoSettings(out="my runs/x", method=("wanda", "ria"), sparsity=(0.5,), batch_size=4, seed=9)
    words = shlex.split(command_line(settings))
    assert words[:2] == ["multiflow", "demo"]
    assert parse(DemoSettings, COMMANDS["demo"], words[2:]) == settings


def test_the_table_is_narrow_and_loud_about_collapse(place, tmp_path):
    settings = tiny_settings(place, tmp_path, sparsity=(0.999,), method=("magnitude-modality",))
    table = result_table(bench_demo.measure(str(place), tmp_path, settings, "multiflow demo", lambda *_: None))
    zeros = [cell for column in table.columns for cell in column.cells if str(cell) in ("99.9", "100.0")]
    assert len(zeros) == 4  # in all, and in each of three modalities
    assert all(cell.style == "bold red" for cell in zeros)
    assert Console(width=200).measure(table).maximum <= 80
