"""The config of a grid: a YAML file, read strictly, with variables put in their places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.reading import MOST_NODES, parse_yaml, read_yaml
from multiflow.base.strict import build
from multiflow.training.settings import Finetuning

MOST_TEXT = 2**16  # characters of a text with its variables in their places
VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Calibration:
    """Calibration data of a model; the options of ``multiflow prune`` of the same names.

    Args:
        data: file or folder; None = scenes of Shapes, made on the fly.
        images: folder of the images that the data name.
        split: of data that have splits.
        augment: None or ``paper``.
        batches: how many at most.
        batch_size: pairs or images a batch.
        workers: processes that read and decode; the figures do not depend on it.
    """

    data: str | None = None
    images: str | None = None
    split: str | None = None
    augment: str | None = None
    batches: int | None = None
    batch_size: int = 32
    workers: int = 0


@dataclass(frozen=True)
class ModelEntry:
    """A model of the grid.

    Args:
        source: a bundled model, folder, checkpoint file or Hugging Face id.
        tasks: names of the grid's tasks that it is fine-tuned for.
        calibration: its calibration data; None leaves it to pruners that need none.
        family: of an original checkpoint.
        config: of an original checkpoint.
        tokenizer: where the model comes without its own.
    """

    source: str
    tasks: tuple[str, ...]
    calibration: Calibration | None = None
    family: str | None = None
    config: str | None = None
    tokenizer: str | None = None


@dataclass(frozen=True)
class Override:
    """What is different for one model: settings put over those of the task.

    Args:
        finetune: fields of `Finetuning`.
        evaluate: options of the evaluation.
    """

    finetune: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskEntry:
    """A task of the grid: what it is, on which data, how it is trained and evaluated.

    Args:
        data: file or folder of the data set.
        kind: ``retrieval``, ``captioning``, ``vqa`` or ``classification``; the entry's own name if left out.
        images: folder of the images that the data name.
        skip_missing: leave out items whose image is missing.
        test_split: on which the figures are measured.
        test_limit: items of it at most.
        finetune: fields of `Finetuning`, such as ``preset`` and ``steps``.
        evaluate: options of the evaluation, such as ``k_test``; they are put over the preset's.
        models: name of a model -> what is different for it.
    """

    data: str
    kind: str | None = None
    images: str | None = None
    skip_missing: bool = False
    test_split: str = "test"
    test_limit: int | None = None
    finetune: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Override] = field(default_factory=dict)

    def of(self, name: str, model: str) -> TaskEntry:
        """Return the task of this name as one model does it."""
        own = self.models.get(model, Override())
        finetune, evaluate = {**self.finetune, **own.finetune}, {**self.evaluate, **own.evaluate}
        return replace(self, kind=self.kind or name, models={}, finetune=finetune, evaluate=evaluate)

    def training(self, place: str = "finetune", **more: Any) -> Finetuning:
        given = {"data": self.data, "images": self.images, "skip_missing": self.skip_missing, **self.finetune}
        return build(Finetuning, {**given, **more}, place)


@dataclass(frozen=True)
class PrunerEntry:
    """A pruner of the grid that differs from a registered one.

    Args:
        method: name of a registered pruner.
        allocation: instead of its own.
        pattern: instead of its own.
        hyper: hyper-parameters.
    """

    method: str
    allocation: str | None = None
    pattern: str | None = None
    hyper: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tier:
    """A part of the grid; tiers are computed one after the other.

    Args:
        name: for tables and ``--tier``.
        pruners: names; ``dense`` is the baseline.
        sparsities: of the pruned models.
        seeds: of calibration, new weights and training.
        models: None = all.
        tasks: None = all that a model does.
    """

    name: str
    pruners: tuple[str, ...]
    sparsities: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    models: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Grid:
    """A whole config.

    Args:
        name: for titles.
        models: name -> model.
        tasks: name -> task.
        tiers: in the order in which they are computed.
        pruners: name -> pruner, for those that are not simply registered ones.
        make: kind of data -> settings; ``shapes`` and ``digits`` are made when they are missing.
        modules: Python files or names of modules that register pruners of the user's own.
        variables: name -> value, as they were put in their places.
    """

    name: str
    models: Mapping[str, ModelEntry]
    tasks: Mapping[str, TaskEntry]
    tiers: tuple[Tier, ...]
    pruners: Mapping[str, PrunerEntry] = field(default_factory=dict)
    make: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)


def read_grid(path: str | Path, given: Sequence[str] = ()) -> tuple[Grid, str]:
    """Read a config; return the grid, and the config as YAML with its variables in their places.

    Args:
        path: a YAML file.
        given: ``VARIABLE=VALUE``, over the values in the file.

    Raises:
        MultiflowError: the file cannot be read, has an unknown key or a value of another type, or a variable lacks its
            value; the error names the place.
    """
    content = read_yaml(Path(path))
    if not isinstance(content, dict):
        raise MultiflowError(f"config '{path}' holds no keys; expected name, models, tasks and tiers")
    values = _variables(content.get("variables") or {}, given)
    put = _put({name: of for name, of in content.items() if name != "variables"}, values)
    resolved = {name: put.get(name, values) for name in content}
    _count(resolved)
    return build(Grid, resolved, "the config"), yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


def _variables(there: Any, given: Sequence[str]) -> dict[str, Any]:
    """Return the values of all variables; one may name those before it."""
    if not isinstance(there, dict):
        raise MultiflowError(f"variables is {there!r}; expected names with values, such as {{data: runs/data}}")
    said: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals:
            raise MultiflowError(f"--set got '{pair}'; expected VARIABLE=VALUE, such as --set data=runs/data")
        if name not in there:
            known = ", ".join(there) or "none"
            raise MultiflowError(f"--set got '{pair}'; the config's variables are: {known}{did_you_mean(name, there)}")
        said[name] = parse_yaml(text, f"the value in --set '{pair}'")
    values: dict[str, Any] = {}
    for name, value in there.items():
        values[name] = _put(said.get(name, value), values)
        _count(values[name])
    return values


def _count(value: Any, before: int = 0) -> int:
    """Count the values inside a value; too many are an error, before they are written out."""
    before += 1
    if before > MOST_NODES:
        raise MultiflowError(f"the variables of the config expand to more than {MOST_NODES} values; simplify them")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        before = _count(inner, before)
    return before


def _put(value: Any, values: Mapping[str, Any]) -> Any:
    """Put variables in their places; a text that is one variable alone takes its value's type."""
    if isinstance(value, dict):
        return {name: _put(of, values) for name, of in value.items()}
    if isinstance(value, list):
        return [_put(one, values) for one in value]
    if not isinstance(value, str):
        return value
    for name in VARIABLE.findall(value):
        if values.get(name) is None:
            hint = "" if name in values else did_you_mean(name, values)
            raise MultiflowError(
                f"variable '{name}' of '{value}' has no value; give one with --set {name}=VALUE"
                f"{hint or ('' if name in values else ' after naming it under variables')}"
            )
    if alone := VARIABLE.fullmatch(value):
        return values[alone[1]]
    if sum(len(str(values[name])) for name in VARIABLE.findall(value)) > MOST_TEXT:
        raise MultiflowError(f"the variables of '{value[:40]}' make a text of more than {MOST_TEXT} characters")
    return VARIABLE.sub(lambda match: str(values[match[1]]), value)
