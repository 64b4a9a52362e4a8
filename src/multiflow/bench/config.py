"""The config of a grid: a YAML file, read strictly, with variables put in their places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.files import MOST_NODES, parse_yaml, read_yaml
from multiflow.base.strict import build
from multiflow.methods import find_pruner
from multiflow.methods.budgets import ALLOCATIONS
from multiflow.training.settings import Finetuning

MOST_TEXT = 2**16  # characters of a text with its variables in their places
VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Calibration:
    """Calibration data of a model; the options of ``multiflow prune`` of the same names."""

    data: str | None = None  # file or folder; None = scenes of Shapes, made on the fly
    images: str | None = None  # folder of the images that the data name
    split: str | None = None  # of data that have splits
    augment: str | None = None  # None or ``paper``
    batches: int | None = None  # how many at most
    batch_size: int = 32  # pairs or images a batch
    workers: int = 0  # processes that read and decode; the figures do not depend on it


@dataclass(frozen=True)
class ModelEntry:
    """A model of the grid."""

    source: str  # a bundled model, folder, checkpoint file or Hugging Face id
    tasks: tuple[str, ...]  # names of the grid's tasks that it is fine-tuned for
    calibration: Calibration | None = None  # its calibration data; None leaves it to pruners that need none
    family: str | None = None  # of an original checkpoint
    config: str | None = None  # of an original checkpoint
    tokenizer: str | None = None  # where the model comes without its own


@dataclass(frozen=True)
class Override:
    """What is different for one model: settings put over those of the task."""

    finetune: Mapping[str, Any] = field(default_factory=dict)  # fields of `Finetuning`
    evaluate: Mapping[str, Any] = field(default_factory=dict)  # options of the evaluation


@dataclass(frozen=True)
class TaskEntry:
    """A task of the grid: what it is, on which data, how it is trained and evaluated."""

    data: str  # file or folder of the data set
    # ``retrieval``, ``captioning``, ``vqa`` or ``classification``; the entry's own name if left out
    kind: str | None = None
    images: str | None = None  # folder of the images that the data name
    skip_missing: bool = False  # leave out items whose image is missing
    test_split: str = "test"  # on which the figures are measured
    test_limit: int | None = None  # items of it at most
    # fields of `Finetuning`, such as ``preset`` and ``steps``
    finetune: Mapping[str, Any] = field(default_factory=dict)
    zero_shot: bool = False  # evaluate the pretrained model with its masks as it is, without any fine-tuning
    # options of the evaluation, such as ``k_test``; they are put over the preset's
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Override] = field(default_factory=dict)  # name of a model -> what is different for it

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
    """A pruner of the grid that differs from a registered one."""

    method: str  # name of a registered pruner
    allocation: str | None = None  # instead of its own
    pattern: str | None = None  # instead of its own
    hyper: Mapping[str, Any] = field(default_factory=dict)  # hyper-parameters
    recover: tuple[str, ...] = ()  # ways of recovery that follow, on the same data, such as ``blocks``
    recovery: Mapping[str, Any] = field(default_factory=dict)  # their settings, such as ``epochs``

    @property
    def needs_data(self) -> bool:
        """Whether it needs calibration data: for its scores, its budgets, or what follows."""
        return find_pruner(self.method).needs_data or self.budgets_need_data or bool(self.recover)

    @property
    def budgets_need_data(self) -> bool:
        """Whether its allocation looks at data."""
        return self.allocation is not None and ALLOCATIONS[self.allocation].needs_data


@dataclass(frozen=True)
class Tier:
    """A part of the grid; tiers are computed one after the other."""

    name: str  # for tables and ``--tier``
    pruners: tuple[str, ...]  # names; ``dense`` is the baseline
    sparsities: tuple[float, ...] = ()  # of the pruned models
    seeds: tuple[int, ...] = (0,)  # of calibration, new weights and training
    models: tuple[str, ...] | None = None  # None = all
    tasks: tuple[str, ...] | None = None  # None = all that a model does


@dataclass(frozen=True)
class Grid:
    """A whole config."""

    name: str  # for titles
    models: Mapping[str, ModelEntry]  # name -> model
    tasks: Mapping[str, TaskEntry]  # name -> task
    tiers: tuple[Tier, ...]  # in the order in which they are computed
    # name -> pruner, for those that are not simply registered ones
    pruners: Mapping[str, PrunerEntry] = field(default_factory=dict)
    # kind of data -> settings; ``shapes`` and ``digits`` are made when they are missing
    make: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    modules: tuple[str, ...] = ()  # Python files or names of modules that register pruners of the user's own
    variables: Mapping[str, Any] = field(default_factory=dict)  # name -> value, as they were put in their places


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
