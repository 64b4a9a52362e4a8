from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import multiflow as mf
from multiflow.base.artifacts import describe_file, write_facts
from multiflow.cli.show import LISTS
from multiflow.families.opening import load_model
from tests import processes
from tests.cli.conftest import Run


@pytest.fixture(scope="module")
def run_dir(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mf.prune(load_model(tiny), "magnitude", [0.5, 0.9]).save(tmp_path_factory.mktemp("runs") / "magnitude")


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in an output, cell by cell."""
    return [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in text.splitlines()]


def test_pruners_are_those_of_the_registry(run: Run) -> None:
    out = run("show", "pruners").out
    for name, pruner in mf.PRUNERS.items():
        assert any(row[:1] == [name] and pruner.summary in row for row in cells(out)), name
    assert "alpha=0.5" in out
    assert "input_norm" in out
    assert all(name in out for name in mf.ALLOCATIONS)


def test_a_pruner_from_outside_is_listed(run: Run) -> None:
    @mf.scorer
    def mine(weight):  # type: ignore[no-untyped-def]
        """My own idea."""
        return weight

    assert "My own idea." in run("show", "pruners").out


def test_models_and_tasks(run: Run) -> None:
    models = cells(run("show", "models").out)
    assert {"xvlm", "vit", "dinov2", "dino"} <= {row[0] for row in models if row}
    assert "read from the model" in [row[1] for row in models if len(row) > 1]
    tasks = cells(run("show", "tasks").out)
    assert ["retrieval"] in [row[:1] for row in tasks]


def test_a_run_is_shown_without_the_models_of_transformers(run: Run, tiny: Path) -> None:
    assert run("prune", tiny, "--method", "magnitude", "--sparsity", 0.5, "--out", "run").code == 0
    code = """
import sys
from multiflow.cli import main
assert main(["show", "run"]) == 0
assert "transformers.modeling_utils" not in sys.modules  # seconds, for a table
"""
    done = processes.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_layouts_of_data(run: Run) -> None:
    layouts = run("show", "layouts").out
    for name in ("img2dataset", "Karpathy", "Visual Genome", "VQA v2", "LibriSpeech", "A+B"):
        assert name in layouts


def test_nothing_shows_the_help_without_blanks(run: Run) -> None:
    shown = run("show")
    assert (shown.code, shown.err) == (0, "")
    assert "pruners | models" in shown.out
    assert "(default: )" not in shown.out


def test_a_model(run: Run, tiny: Path) -> None:
    ran = run("show", tiny)
    assert ran.code == 0
    assert ran.err == ""
    rows = cells(ran.out)
    model = load_model(tiny)
    layout = mf.adapter_for(model).layout(model)
    assert ["vision_encoder.encoder.layers.{0-1}.mlp.fc1", "vision", "32 x 16", "2", "1,024"] in rows
    assert ["text_encoder.bert.encoder.layer.0.intermediate.dense", "text", "32 x 16", "1", "512"] in rows
    assert any(row[:2] == ["vision_proj", "Linear"] for row in rows)
    assert any(row[:2] == ["temp", "Parameter"] for row in rows)
    assert any(row[:3] == ["in all", str(len(layout)), f"{layout.size:,}"] for row in rows)
    total = sum(parameter.numel() for parameter in model.parameters())
    dense = [
        int(row[2].replace(",", ""))
        for row in rows[rows.index(next(r for r in rows if r[:1] == ["stays dense"])) + 2 :]
        if len(row) == 4
    ]
    assert sum(dense) + layout.size == total


def test_an_original_checkpoint(run: Run) -> None:
    golden = Path(__file__).parents[1] / "golden" / "dino"
    ran = run("show", golden / "weights.safetensors", "--family", "dino", "--config", golden / "config.json")
    assert ran.code == 0
    assert "ViTForImageClassification" in ran.out


def test_a_mask_file(run: Run, run_dir: Path) -> None:
    path = run_dir / "mask-0.9.safetensors"
    rows = cells(run("show", path).out)
    masks = mf.Masks.load(path)
    for name, share in masks.sparsities().items():
        row = next(row for row in rows if row[:1] == [name])
        assert row[1:5] == [
            masks.layout[name].group,
            f"{masks.dropped(name):,}",
            f"{masks.layout[name].size:,}",
            f"{100 * share:.2f} %",
        ]
    assert any(row[:1] == ["in all"] and "90.00 %" in row for row in rows)
    assert ["method", "magnitude"] in rows
    assert ["sparsity", "0.9"] in rows


def test_two_mask_files(run: Run, run_dir: Path) -> None:
    paths = run_dir / "mask-0.5.safetensors", run_dir / "mask-0.9.safetensors"
    rows = cells(run("show", *paths).out)
    first, second = map(mf.Masks.load, paths)
    name = next(iter(first))
    same = (first[name] == second[name]).float().mean()
    both, either = (first[name] & second[name]).sum(), (first[name] | second[name]).sum()
    row = next(row for row in rows if row[:1] == [name])
    assert row[1:3] == [f"{100 * same:.2f} %", f"{100 * both / either:.2f} %"]
    assert [row[0] for row in rows if row[1:2] and row[1].endswith("%")][-4:] == ["vision", "text", "fusion", "in all"]
    assert rows[-3] == [
        "in all",
        "60.00 %",
        f"{100 * (1 - second.sparsity) / (1 - first.sparsity):.2f} %",
        *rows[-3][3:],
    ]
    assert rows[-3][3:] == ["50.00 %", "90.00 %"]


def test_masks_of_different_models(run: Run, run_dir: Path, tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "xvlm"
    source = [golden / "weights.safetensors", "--family", "xvlm", "--config", golden / "config.json"]
    run("prune", *source, "--method", "random", "--sparsity", 0.5, "--out", "other")
    error = run("show", run_dir / "mask-0.5.safetensors", "other/mask-0.5.safetensors").error
    assert "the masks cover different layers" in error


def test_a_run_folder(run: Run, run_dir: Path) -> None:
    rows = cells(run("show", run_dir).out)
    assert ["0.5", "50.00 %"] in [row[:2] for row in rows]
    assert ["0.9", "90.00 %"] in [row[:2] for row in rows]
    assert f"in {run_dir}: mask-0.5.safetensors, mask-0.9.safetensors" in run("show", run_dir).out


def test_a_folder_of_a_demo(run: Run, tmp_path: Path) -> None:
    quality = {"tr1": 81.25, "ir1": 79.0}
    row = {"method": "wanda", "achieved": 0.75, "quality": quality, "groups": {"vision": 0.7, "text": 0.8}}
    demo = {"model": "xvlm-shapes", "scenes": 200, "dense": quality, "rows": [row]}
    (tmp_path / "demo.json").write_text(json.dumps(demo))
    rows = cells(run("show", tmp_path).out)
    assert ["wanda", "75.00 %", "81.2", "79.0", "70.00 %", "80.00 %"] in rows
    assert ["dense", "0.00 %", "81.2", "79.0", "0.00 %", "0.00 %"] in rows


def test_a_folder_of_pretraining(run: Run, tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_text(json.dumps({"tr1": 95.06}))
    assert ["tr1", "95.1"] in cells(run("show", tmp_path).out)


def test_a_folder_of_an_evaluation_and_what_was_said_beside_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text("[]")
    said = {"task": "captioning", "figures": {"CIDEr": 81.256}, "items": 3, "source": "coco"}
    files = {"captions.json": describe_file(tmp_path / "captions.json")}
    write_facts(tmp_path / "evaluation.json", {**said, "settings": {"model": "m", "split": "val"}, "files": files})
    shown = run("show", tmp_path).out
    assert ["CIDEr", "81.26"] in cells(shown)
    assert "m on captioning: 3 items of coco, split val" in shown
    (tmp_path / "captions.json").write_text("[1]")
    assert "captions.json' was altered" in run("show", tmp_path).error


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": 3, "masks": {}, "timings": {}}'])
def test_a_damaged_run(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    assert "result.json' is damaged" in run("show", tmp_path).error


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["a", "b", "c"], "'multiflow show' got 3 names"),
        (["pruner"], "did you mean 'pruners'?"),
        (["taks"], "did you mean 'tasks'?"),
        (["mask.safetensors"], "there is no file or folder 'mask.safetensors'"),
        (["mask.safetensors", "other.safetensors"], "no mask file at 'mask.safetensors'"),
        (["data"], "folder 'data' holds no config.json"),
        (["data", "nowhere"], "no data at 'nowhere'"),
    ],
)
def test_bad_input(run: Run, tmp_path: Path, args: list[str], said: str) -> None:
    (tmp_path / "data").mkdir()
    assert said in run("show", *args).error


def test_a_truncated_mask_file(run: Run, run_dir: Path, tmp_path: Path) -> None:
    whole = (run_dir / "mask-0.9.safetensors").read_bytes()
    (tmp_path / "mask-0.9.safetensors").write_bytes(whole[:-100])
    assert "holds no masks, or is damaged" in run("show", "mask-0.9.safetensors").error


def test_every_list_is_named_in_the_help(run: Run) -> None:
    out = run("show", "--help").out
    assert all(name in out for name in LISTS)


def test_show_alone_says_what_it_can_show(run: Run) -> None:
    alone = run("show")
    assert (alone.code, alone.out) == (0, run("show", "--help").out)
    assert "MASK_FILE" in alone.out
