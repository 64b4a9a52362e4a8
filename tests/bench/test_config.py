from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from multiflow.base.errors import MultiflowError
from multiflow.bench.config import read_grid

TEXT = """
name: a
variables: {data: runs/data, steps: 100, coco: "${data}/coco"}
models:
  m: {source: xvlm-shapes, tasks: [retrieval]}
tasks:
  retrieval: {data: "${coco}", finetune: {steps: "${steps}", lr: 1e-4}, models: {m: {finetune: {steps: 60}}}}
tiers:
  - {name: "1", pruners: [dense, magnitude], sparsities: [0.63, 0], seeds: [0, 1]}
"""


def read(folder: Path, text: str, *given: str) -> Any:
    path = folder / "grid.yaml"
    path.write_text(text)
    return read_grid(path, given)


def test_variables_are_put_in_their_places_and_keep_their_type(tmp_path: Path) -> None:
    grid, resolved = read(tmp_path, TEXT)
    task = grid.tasks["retrieval"]
    assert task.data == "runs/data/coco"
    assert task.finetune == {"steps": 100, "lr": 1e-4}
    assert grid.tiers[0].sparsities == (0.63, 0.0)
    grid, resolved = read(tmp_path, TEXT, "data=/d", "steps=5")
    assert (grid.tasks["retrieval"].data, grid.tasks["retrieval"].finetune["steps"]) == ("/d/coco", 5)
    assert read(tmp_path, resolved) == (grid, resolved)


def test_a_model_has_its_own_settings_of_a_task(tmp_path: Path) -> None:
    task = read(tmp_path, TEXT)[0].tasks["retrieval"]
    assert task.of("retrieval", "m").training().steps == 60
    assert task.of("retrieval", "other").training().steps == 100
    assert task.of("retrieval", "m").training().lr == 1e-4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tiers:", "teirs:", "unknown key 'teirs' in the config; known: name, models, tasks, tiers, pruners, make,"),
        ("pruners: [", "pruner: [", "unknown key 'pruner' in the config.tiers[0]; known: name, pruners, sparsities"),
        ("source: x", "sorce: x", "did you mean 'source'?"),
        ("source: xvlm-shapes, ", "", "the config.models.m lacks the key 'source'"),
        ('"1"', "1", "the config.tiers[0].name is 1; expected a text in quotes"),
        ("[0, 1]", "[0, 0.5]", "the config.tiers[0].seeds[1] is 0.5; expected a whole number"),
        ("[0, 1]", "0", "the config.tiers[0].seeds is 0; expected a list"),
        ("[0.63, 0]", "[true]", "sparsities[0] is True; expected a finite number"),
        ("{m: {finetune: {steps: 60}}}", "[m]", "retrieval.models is ['m']; expected keys with values"),
        ("steps: 100", "steps: null", "variable 'steps' of '${steps}' has no value; give one with --set steps=VALUE"),
        ("${coco}", "${cooc}", "variable 'cooc' of '${cooc}' has no value; give one with --set cooc=VALUE; did you"),
        ("name: a", "name: [", "is no YAML"),
    ],
)
def test_bad_configs(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TEXT
    with pytest.raises(MultiflowError) as error:
        read(tmp_path, TEXT.replace(old, new, 1))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("dta=x", "--set got 'dta=x'; the config's variables are: data, steps, coco; did you mean 'data'?"),
        ("data", "--set got 'data'; expected VARIABLE=VALUE"),
    ],
)
def test_bad_values_of_variables(tmp_path: Path, given: str, said: str) -> None:
    with pytest.raises(MultiflowError) as error:
        read(tmp_path, TEXT, given)
    assert said in str(error.value)


def test_a_variable_without_a_value_may_stand_in_one_that_is_given(tmp_path: Path) -> None:
    text = TEXT.replace(
        '{data: runs/data, steps: 100, coco: "${data}/coco"}', '{root: null, coco: "${root}/d", steps: 1}'
    )
    grid, resolved = read(tmp_path, text, "coco=/d")
    assert grid.tasks["retrieval"].data == "/d"
    assert grid.variables == {"root": None, "coco": "/d", "steps": 1}
    assert read(tmp_path, resolved) == (grid, resolved)
    with pytest.raises(MultiflowError, match=r"variable 'root' of '\$\{root\}/d' has no value"):
        read(tmp_path, text)


@pytest.mark.parametrize("value", ["@foo", "{DATA}/x: [", "a: b: c", "{a: 1, a: 2}"])
def test_a_value_that_is_no_yaml(tmp_path: Path, value: str) -> None:
    with pytest.raises(MultiflowError) as error:
        read(tmp_path, TEXT, f"data={value}")
    assert f"--set 'data={value}' is no YAML" in str(error.value)


@pytest.mark.parametrize("value", ['"${V}${V}"', '["${V}", "${V}"]'])
def test_variables_that_double_forty_times(tmp_path: Path, value: str) -> None:
    lines = ["  v0: [aaaaaaaaaa]" if value[0] == "[" else "  v0: aaaaaaaaaa"]
    lines += [f"  v{i}: {value.replace('V', f'v{i - 1}')}" for i in range(1, 40)]
    with pytest.raises(MultiflowError, match="more than"):
        read(tmp_path, "name: a\nvariables:\n" + "\n".join(lines))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: a", "name: a\nname: b", "key 'name' is given twice, in line 2 and in line 3"),
        ("steps: 60", "steps: 60, steps: 70", "key 'steps' is given twice, in line 7 and in line 7"),
    ],
)
def test_a_key_that_is_given_twice(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(MultiflowError, match=said):
        read(tmp_path, TEXT.replace(old, new, 1))


def test_what_is_taken_over_may_be_given_anew(tmp_path: Path) -> None:
    text = TEXT.replace(
        "tasks:\n", 'tasks:\n  short: &short {data: "${coco}", kind: retrieval, finetune: {steps: 5}}\n'
    )
    text = text.replace(
        "tiers:", "  long: &long {<<: *short, finetune: {steps: 9}}\n  other: {<<: *long, data: x}\ntiers:"
    )
    tasks = read(tmp_path, text)[0].tasks
    assert [tasks[name].finetune for name in ("short", "long", "other")] == [{"steps": 5}, {"steps": 9}, {"steps": 9}]
    assert [tasks[name].data for name in ("short", "long", "other")] == ["runs/data/coco", "runs/data/coco", "x"]


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MultiflowError, match=r"cannot read '.*none.yaml'"):
        read_grid(tmp_path / "none.yaml")
    with pytest.raises(MultiflowError, match="holds no keys"):
        read(tmp_path, yaml.safe_dump(["a"]))
