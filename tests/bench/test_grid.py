from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.bench.config import read_grid
from multiflow.bench.grid import Plan, expand, select
from multiflow.bench.run import RunOptions, prepare
from tests.bench.conftest import write_config

OWN = """
from multiflow.methods import scorer

@scorer
def {name}(weight):
    return {value}
"""


def plans(folder: Path, content: dict[str, Any]) -> list[Plan]:
    return expand(read_grid(write_config(folder, content))[0])


def ids(folder: Path, content: dict[str, Any]) -> list[str]:
    return [plan.cell.id for plan in plans(folder, content)]


def test_tier_by_tier_the_baseline_first_and_prunings_together(tmp_path: Path, small: dict[str, Any]) -> None:
    small["tasks"]["captioning"] = {"data": small["tasks"]["retrieval"]["data"], "finetune": {"preset": "shapes"}}
    small["models"]["tiny"]["tasks"].append("captioning")
    small["tiers"] = [
        {"name": "1", "pruners": ["wanda", "dense"], "sparsities": [0.5], "seeds": [0, 1], "tasks": ["retrieval"]},
        {"name": "2", "pruners": ["wanda"], "sparsities": [0.5, 0.75]},
    ]
    found = plans(tmp_path, small)
    assert [(p.cell.tier, p.cell.seed, p.cell.pruner, p.cell.sparsity, p.cell.task) for p in found] == [
        ("1", 0, "dense", 0.0, "retrieval"),
        ("1", 1, "dense", 0.0, "retrieval"),
        ("1", 0, "wanda", 0.5, "retrieval"),
        ("1", 1, "wanda", 0.5, "retrieval"),
        ("2", 0, "wanda", 0.5, "captioning"),
        ("2", 0, "wanda", 0.75, "retrieval"),
        ("2", 0, "wanda", 0.75, "captioning"),
    ]
    first, second = (p.cell.pruning for p in found if p.cell.tier == "1" and p.pruner)
    assert first != second
    assert {p.cell.pruning for p in found if p.cell.tier == "2"} == {first}
    assert {p.sparsities for p in found if p.cell.pruning == first} == {(0.5, 0.75)}
    assert [len(select(found, ["2"])), len(select(found, only=["pruner=dense"]))] == [3, 2]
    assert len(select(found, only=["sparsity=0.5,0.75", "seed=0", "task=retrieval"])) == 2


def test_recoveries_are_made_one_sparsity_at_a_time(tmp_path: Path, small: dict[str, Any]) -> None:
    small["pruners"] = {"recovered": {"method": "wanda", "recover": ["blocks"]}}
    small["tiers"] = [{"name": "1", "pruners": ["wanda", "recovered"], "sparsities": [0.5, 0.75]}]
    found = plans(tmp_path, small)
    assert [(p.cell.pruner, p.sparsities) for p in found] == [
        ("wanda", (0.5, 0.75)),
        ("wanda", (0.5, 0.75)),
        ("recovered", (0.5,)),
        ("recovered", (0.75,)),
    ]
    assert found[2].cell.pruning == found[3].cell.pruning


def test_what_changes_no_figures_changes_no_id(tmp_path: Path, small: dict[str, Any]) -> None:
    before = ids(tmp_path, small)
    other = copy.deepcopy(small)
    other["name"] = "other"
    other["models"]["renamed"] = other["models"].pop("tiny")
    other["models"]["renamed"]["calibration"]["workers"] = 1
    other["tasks"]["retrieval"]["test_split"] = "test"
    other["tasks"]["retrieval"]["finetune"] |= {"checkpoint_every": 1, "optimizer": "adamw"}
    other["pruners"] = {"magnitude": {"method": "magnitude"}}
    assert ids(tmp_path, other) == before


@pytest.mark.parametrize(
    ("where", "change"),
    [
        (("tasks", "retrieval", "finetune"), {"steps": 3}),
        (("tasks", "retrieval", "evaluate"), {"k_test": 3}),
        (("tasks", "retrieval"), {"test_limit": 2}),
        (("tasks", "retrieval"), {"zero_shot": True}),
        (("tiers", 0), {"seeds": [1]}),
    ],
)
def test_what_changes_figures_changes_every_id(
    tmp_path: Path, small: dict[str, Any], where: tuple[Any, ...], change: dict[str, Any]
) -> None:
    before = set(ids(tmp_path, small))
    place: Any = small
    for name in where:
        place = place[name]
    place.update(change)
    assert before.isdisjoint(ids(tmp_path, small))


def test_calibration_counts_for_those_that_need_it(tmp_path: Path, small: dict[str, Any]) -> None:
    small["tiers"][0] |= {"pruners": ["dense", "magnitude", "wanda"], "sparsities": [0.5]}
    dense, magnitude, wanda = ids(tmp_path, small)
    small["models"]["tiny"]["calibration"]["batches"] = 3
    assert ids(tmp_path, small)[:2] == [dense, magnitude]
    assert ids(tmp_path, small)[2] != wanda


def test_a_model_counts_by_its_weights_and_made_data_by_how_they_are_made(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(small["models"]["tiny"]["source"], moved)
    small["make"] = {"shapes": {"out": "a/shapes", "train": 24}}
    small["tasks"]["retrieval"]["data"] = "a/shapes/coco"
    before = ids(tmp_path, small)
    small["models"]["tiny"]["source"] = str(moved)
    small["make"] = {"shapes": {"out": "b/shapes", "train": 24, "val": 1000}}
    small["tasks"]["retrieval"]["data"] = "b/shapes/coco"
    assert ids(tmp_path, small) == before
    small["make"]["shapes"]["train"] = 26
    assert set(before).isdisjoint(ids(tmp_path, small))
    small["make"]["shapes"]["train"] = 24
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert set(before).isdisjoint(ids(tmp_path, small))


def test_a_pruner_of_the_users_own_counts_by_its_text(tmp_path: Path, small: dict[str, Any]) -> None:
    found = []
    for number, value in enumerate(("weight.abs()", "-weight.abs()")):
        name = f"own_scores_{number}"
        path = tmp_path / f"{name}.py"
        path.write_text(OWN.format(name=name, value=value))
        small["modules"] = [str(path)]
        small["tiers"] = [{"name": "1", "pruners": [name], "sparsities": [0.5]}]
        grid, _ = read_grid(write_config(tmp_path, small))
        found.append(prepare(grid, RunOptions())[0][0].cell.settings["pruner"])
    assert found[0]["method"] == "own_scores_0"
    assert found[0]["code"] != found[1]["code"]


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"tiers": [{"name": "1", "pruners": ["magnitud"], "sparsities": [0.5]}]}, "in tiers.1.pruners"),
    ({"tiers": [{"name": "1", "pruners": ["dense"], "models": ["tinny"]}]}, "did you mean 'tiny'?"),
    ({"tiers": [{"name": "1", "pruners": ["dense"], "tasks": ["vqa"]}]}, "unknown task 'vqa' in tiers.1.tasks"),
    ({"tiers": [{"name": "1", "pruners": ["magnitude"]}]}, "tiers.1 has no cells; give it"),
    ({"tiers": [{"name": "1", "pruners": ["dense"], "seeds": [0, 0]}]}, "tiers.1.seeds names 0 twice"),
    ({"tiers": [{"name": "1", "pruners": ["dense"], "seeds": [-1]}]}, "tiers.1.seeds holds -1; expected at least 0"),
    ({"tiers": [{"name": "1", "pruners": ["dense"]}] * 2}, "tiers names '1' twice"),
    ({"tiers": [{"name": "1", "pruners": ["magnitude"], "sparsities": [75]}]}, "did you mean 0.75?"),
    ({"pruners": {"two": {"method": "magnitude", "pattern": "2:4"}}}, "pattern '2:4' means sparsity 0.5, not 0.75"),
    (
        {"pruners": {"two": {"method": "itersnip", "pattern": "2:4"}}, "sparsities": [0.5]},
        "pattern '2:4' cannot be reached in steps",
    ),
    ({"pruners": {"two": {"method": "wanda", "hyper": {"alpha": 1}}}}, "pruner 'wanda' has no hyper-parameter 'alpha'"),
    ({"pruners": {"two": {"method": "wanda", "allocation": "globl"}}}, "did you mean 'global'?"),
    ({"pruners": {"two": {"method": "magnitude"}}, "also": ["magnitude"]}, "'magnitude' and 'two' of the grid are the"),
    ({"pruners": {"two": {"method": "none"}}}, "unknown pruner 'none' in pruners.two.method"),
    ({"pruners": {"dense": {"method": "wanda"}}}, "pruners.dense is the baseline's name"),
    ({"modules": ["none.py"]}, "module 'none.py' cannot be imported"),
    ({"make": {"shape": {"out": "a"}}}, "did you mean 'shapes'?"),
    ({"make": {"shapes": {"out": "a", "trian": 3}}}, "unknown key 'trian' in make.shapes"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_bad_grids(tmp_path: Path, small: dict[str, Any], change: dict[str, Any], said: str) -> None:
    sparsities, also = change.get("sparsities", [0.5, 0.75]), change.get("also", [])
    if "two" in change.get("pruners", {}):
        small["tiers"] = [{"name": "1", "pruners": [*also, "two"], "sparsities": sparsities}]
    small |= {name: of for name, of in change.items() if name not in ("sparsities", "also")}
    grid, _ = read_grid(write_config(tmp_path, small))
    with pytest.raises(MultiflowError) as error:
        prepare(grid, RunOptions())
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "nowhere/coco"}, "no data at 'nowhere/coco': no such file or folder"),
        ({"kind": "retreival"}, "unknown task 'retreival'"),
        ({"kind": "classification"}, "a model of type 'xvlm' cannot do task 'classification'"),
        ({"finetune": {"stesp": 3}}, "unknown key 'stesp' in tasks.retrieval.finetune"),
        ({"finetune": {"steps": "many"}}, "tasks.retrieval.finetune.steps is 'many'; expected a whole number"),
        ({"finetune": {"seed": 3}}, "'seed' stands in tasks.retrieval.finetune; it belongs to seeds of a tier"),
        ({"finetune": {"preset": "papr"}}, "did you mean 'paper'?"),
        ({"evaluate": {"ktest": 3}}, "did you mean 'k_test'?"),
        ({"models": {"tin": {}}}, "unknown model 'tin' in tasks.retrieval.models"),
        ({"models": {"tiny": {"finetune": {"stesp": 3}}}}, "in tasks.retrieval.models.tiny.finetune"),
    ],
)
def test_bad_tasks(tmp_path: Path, small: dict[str, Any], change: dict[str, Any], said: str) -> None:
    small["tasks"]["retrieval"] |= change
    if "kind" in change:
        small["tasks"]["retrieval"] |= {"evaluate": {}}
    grid, _ = read_grid(write_config(tmp_path, small))
    with pytest.raises(MultiflowError) as error:
        prepare(grid, RunOptions())
    assert said in str(error.value)


def test_a_pruner_that_needs_data_and_a_model_without(tmp_path: Path, small: dict[str, Any]) -> None:
    del small["models"]["tiny"]["calibration"]
    assert len(plans(tmp_path, small)) == 3
    small["tiers"][0]["pruners"].append("wanda")
    with pytest.raises(MultiflowError, match="model 'tiny' has no calibration data"):
        plans(tmp_path, small)


@pytest.mark.parametrize(
    ("tiers", "only", "said"),
    [
        (["2"], [], "unknown tier '2'; known: 1"),
        ([], ["modle=tiny"], "did you mean 'model'?"),
        ([], ["pruner=wanda"], "unknown value of --only pruner 'wanda'; known: dense, magnitude"),
        (
            ["1"],
            ["pruner=dense", "sparsity=0.5"],
            "no cell of the grid fits all that was asked for (tier 1, pruner=dense,",
        ),
    ],
)
def test_a_selection_of_nothing(
    tmp_path: Path, small: dict[str, Any], tiers: list[str], only: list[str], said: str
) -> None:
    with pytest.raises(MultiflowError) as error:
        select(plans(tmp_path, small), tiers, only)
    assert said in str(error.value)


def test_config_and_tokenizer_count_by_their_bytes_where_they_are(tmp_path: Path, small: dict[str, Any]) -> None:
    model = small["models"]["tiny"]
    for name, files in (("tokenizer", ("vocab.txt", "tokenizer_config.json")), ("config", ("config.yaml",))):
        for place in ("a", "b"):
            (tmp_path / place / name).mkdir(parents=True)
            for file in files:
                (tmp_path / place / name / file).write_text(file)
    found = []
    for place in ("a", "b"):
        model |= {
            "tokenizer": str(tmp_path / place / "tokenizer"),
            "config": str(tmp_path / place / "config/config.yaml"),
        }
        found.append(ids(tmp_path, small))
    (tmp_path / "b/tokenizer/vocab.txt").write_text("other")
    found.append(ids(tmp_path, small))
    (tmp_path / "b/config/config.yaml").write_text("other")
    found.append(ids(tmp_path, small))
    assert found[0] == found[1]
    assert len({tuple(of) for of in found}) == 3
    model |= {"tokenizer": "bert-base-uncased", "config": "base"}
    elsewhere = plans(tmp_path, small)[0].cell.settings["model"]
    assert (elsewhere["tokenizer"], elsewhere["config"]) == ("bert-base-uncased", "base")


def test_images_that_are_made_count_by_how_they_are_made(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    small["tiers"][0]["pruners"] = ["dense", "wanda"]
    found = []
    for out, images in (("a", "a/images"), ("~/a", "~/a/images"), ("~/a", "/home/me/a/images"), ("a", "b/images")):
        small["make"] = {"shapes": {"out": out, "train": 24}}
        small["tasks"]["retrieval"]["images"] = small["models"]["tiny"]["calibration"]["images"] = images
        found.append(ids(tmp_path, small))
    assert found[0] == found[1] == found[2]
    assert not set(found[0]) & set(found[3])


def test_the_ids_of_the_grid_whose_results_are_kept() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    lines = (folder / "results" / "shapes" / "grid.jsonl").read_text().splitlines()
    kept = {(cell["id"], cell["pruning"]) for cell in map(json.loads, lines)}
    assert kept <= {(p.cell.id, p.cell.pruning) for p in expand(read_grid(folder / "shapes.yaml")[0])}
