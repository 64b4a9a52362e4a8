"""What a family of models is, and the table of all of them.

A family is one folder of this package, whose ``__init__`` adds its record to `FAMILIES`; nothing else knows of it.
A family from outside is a file or folder that does the same, imported before it is used (``--modules``). The record
itself is light: its parts are references, imported when they are asked for, or the things themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import nn

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.guards import check_module, check_values
from multiflow.base.registry import Registry, resolve
from multiflow.base.types import LiveWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Part: TypeAlias = Any
"""A part of a family, or where it is: ``module:attribute``, ``.module:attribute`` inside the family's `Family.home`."""

Places: TypeAlias = Mapping[str, tuple[str, ...]]
"""Prunable layer of the pretrained model -> paths of the modules in the task model whose weight starts from it.

Empty where the task model is the pretrained one as it is."""

Builder: TypeAlias = "Callable[..., tuple[PreTrainedModel, Places]]"
"""``builder(model, **options)`` -> the task model and the places; the options are its keyword arguments."""

Schedule: TypeAlias = Literal["cosine", "linear"]
"""How a learning rate falls."""


@dataclass(frozen=True)
class ModelType:
    """What the library can do with the models of one ``config.model_type``; all but the adapter may be missing."""

    adapter: Part  # part: ``f(model)`` -> its `Adapter`
    tasks: tuple[str, ...] = ()  # those whose model can be built from it
    evaluates: tuple[str, ...] = ()  # those that it is evaluated on as it is
    untrained: tuple[str, ...] = ()  # those of ``tasks`` whose model needs no training to be evaluated
    original: Part = None  # part: the `Original` that says what the release calls its weights
    batches: Part = None  # part: ``f(model, place, source)`` -> calibration batches, see `multiflow.families.batches`
    sample: Part = None  # part: ``f(model, place)`` -> a batch of one made-up picture with a text, if it can be made


@dataclass(frozen=True)
class Texts:
    """How the texts of a family are tokenized."""

    ends: bool = False  # whether they end with [SEP]
    length: int = 40  # tokens at most
    lengths: Mapping[str, int] = field(default_factory=dict)  # the same for a task, where it differs


@dataclass(frozen=True)
class Preset:
    """How a family is fine-tuned for a task. What publications leave open is alike in all: gradients clipped at 1."""

    lr: float  # highest learning rate
    batch_size: int  # samples a step, those of all processes and accumulated batches together
    epochs: int = 1  # how often the training data are gone through, unless ``steps`` says how many steps to take
    steps: int | None = None  # optimizer steps
    weight_decay: float = 0.01  # of matrices
    schedule: Schedule = "linear"  # how the learning rate falls
    warmup: float = 0.1  # share of the steps during which it rises
    betas: tuple[float, float] = (0.9, 0.98)  # AdamW's
    new_lr: float = 1.0  # factor on the learning rate of new layers
    image_size: int | None = 384  # side of the images in pixels; None = the pretrained model's
    augment: bool = True  # whether training images are augmented
    val_split: str = "val"  # split on which the best checkpoint is chosen
    val_limit: int | None = None  # items of it at most
    evaluations: int = 4  # how often a run of ``steps`` is evaluated; one of epochs is after each
    options: Mapping[str, Any] = field(default_factory=dict)  # of the task model, see `mf.task_model`
    evaluate: Mapping[str, Any] = field(default_factory=dict)  # options of the evaluation


@dataclass(frozen=True)
class Family:
    """All that the library knows of a family of models."""

    name: str  # as in ``load_model(family=...)``
    title: str  # as it is written in a text
    # package or module that references beginning with a dot are relative to; ``__name__`` where it is written
    home: str
    models: Mapping[str, ModelType]  # ``config.model_type`` -> what can be done with models of this type
    others: ModelType | None = None  # the same for models of a type that no family names; None = it takes none of them
    accepts: Part = None  # part: ``f(model)`` -> whether it takes this one of the others
    # part: module of the family's own model classes; those that it lacks are looked for in transformers
    classes: Part = None
    release: Part = None  # part: the `Original` by which files of the original release are read; None = they are not
    task_models: Mapping[str, Part] = field(default_factory=dict)  # task -> part: the `Builder` of its model
    # part: ``f(place, model, processor, prompt)`` -> `Preprocessing`, where models are read through their own processor
    preprocessing: Part = None
    refuse: Part = None  # part: ``f(model, task)`` raises where one of the others cannot do a task
    texts: Texts | None = None  # how its texts are tokenized; None for models of images alone
    scoring: Part = None  # part: the `PairScoring` by which images and texts are compared; None where they are not
    memory: Part = None  # part: regex of the names of tensors that training needs and a stored model does without
    # part: the `Recipe` by which a small model is pretrained from random weights; None = there is none
    recipe: Part = None
    # data set that a question is from -> how much its answers count in training; 1 where not given
    answer_weights: Mapping[str, float] = field(default_factory=dict)
    # name -> task -> the hyper-parameters of fine-tuning
    presets: Mapping[str, Mapping[str, Preset]] = field(default_factory=dict)

    def get(self, part: Part) -> Any:
        """Import a part from where it is, unless it is the thing itself."""
        return resolve(part, self.home) if isinstance(part, str) else part


FAMILIES: Registry[Family] = Registry(
    "family", "multiflow.families", folders=True, order=lambda name, family: (family.others is not None, name)
)
"""Every family by its name; those that take models of any type come last."""


def model_types() -> Iterator[tuple[str, Family, ModelType]]:
    """Yield every known ``config.model_type`` with its family and what can be done with such models."""
    for family in FAMILIES.values():
        for model_type, known in family.models.items():
            yield model_type, family, known


def type_of(model: Any) -> str:
    """Return the ``config.model_type`` of a model, or the name of its class."""
    return getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__


def find_family(model: Any) -> tuple[Family, ModelType] | None:
    """Return the family of a model and what can be done with models of its type; None if there is none."""
    for model_type, family, known in model_types():
        if model_type == type_of(model):
            return family, known
    for family in FAMILIES.values():
        if family.others is not None and family.get(family.accepts)(model):
            return family, family.others
    return None


def family_of(model: Any) -> Family | None:
    """Return the family of a model, or None."""
    found = find_family(model)
    return found and found[0]


def reads_by_processor(model: Any) -> bool:
    """Tell whether a model is read through its own processor, as those of no known type are."""
    family = family_of(model)
    return family is not None and family.preprocessing is not None


def texts_of(model: Any) -> Texts:
    family = family_of(model)
    return family.texts if family and family.texts else Texts()


def memory_of(model: Any) -> str:
    """Return the regex of the names of tensors that training needs and a stored model does without."""
    family = family_of(model)
    return (family and family.get(family.memory)) or r"(?!)"


def adapter_for(
    model: nn.Module,
    *,
    exclude: str | None = None,
    groups: Mapping[str, str] | None = None,
    streams: Mapping[str, str] | None = None,
    tokens: str = "all",
) -> Adapter:
    """Return the adapter of a known family, or one that is read from the model, if it is one of transformers.

    Args:
        model: the model.
        exclude: regex of module paths that stay dense as well.
        groups: group -> regex of module paths, instead of the groups found (all of them for a known family, those
            layers alone for another model).
        streams: regex of module paths -> stream, before those found.
        tokens: which tokens of the language model's stream count: ``all``, ``text`` or ``image``; not for known
            families.

    Raises:
        MultiflowError: a model that is not of transformers, or has parts that cannot be placed, all of them named.

    >>> mf.adapter_for(xvlm).layout(xvlm).groups.keys()      # doctest: +SKIP
    dict_keys(['vision', 'text', 'fusion'])
    """
    found = find_family(model)
    if found is None:
        model_type = getattr(getattr(model, "config", None), "model_type", "")
        given = f"model_type '{model_type}'" if model_type else f"a {type(model).__name__} without config.model_type"
        known_types = ", ".join(name for name, *_ in model_types())
        raise MultiflowError(
            f"no adapter for {given}; known: {known_types}, and all models of transformers; for any other model pass "
            "adapter=mf.Adapter(groups={'vision': r'regex of module paths', ...})"
        )
    family, known = found
    if known is family.others:
        return family.get(known.adapter)(model, exclude=exclude, groups=groups, streams=streams, tokens=tokens)
    own: Adapter = family.get(known.adapter)(model)
    if tokens != "all":
        raise MultiflowError(f"tokens='{tokens}' was given, but family '{own.name}' counts all tokens; leave it out")
    return replace(
        own,
        exclude="|".join(regex for regex in (own.exclude, exclude) if regex) or None,
        groups=groups or own.groups,
        streams={**(streams or {}), **own.streams},
    )


def check_fit(model: nn.Module, adapter: Adapter | None = None) -> None:
    """Refuse what could not be pruned at a door that was given no masks, in the words in which the others say it.

    A model with a part that cannot be placed, such as a quantised tower, is let in with values: it works all the same.
    """
    check_module(model)
    try:
        found = adapter or adapter_for(model)
    except MultiflowError:
        check_values({name.removesuffix(".weight"): weight for name, weight in model.named_parameters()})
        return
    check_values(LiveWeights(model, found.layout(model)))


def original_names(model: nn.Module) -> dict[str, str]:
    """Map each prunable layer of a known family to its parameter name in the original release.

    Args:
        model: a model whose ``config.model_type`` is known.

    Returns:
        Module path -> release name with its ``.weight``, in module order.

    Raises:
        MultiflowError: the model belongs to no family with an original release.

    >>> original_names(load_model("xvlm.pth", "xvlm"))["vision_encoder.encoder.layers.0.mlp.fc1"]  # doctest: +SKIP
    'vision_encoder.encoder.layers.0.mlp.fc1.weight'
    """
    able = {model_type: (family, known.original) for model_type, family, known in model_types() if known.original}
    if type_of(model) not in able:
        raise unknown("model type", type_of(model), able)
    family, part = able[type_of(model)]
    original = family.get(part)
    return {
        name: original.key(f"{name}.weight")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.search(original.layers, name)
    }


def find_builder(model: nn.Module, task: str, others: Mapping[str, Builder] = MappingProxyType({})) -> Builder:
    """Import the builder of a task model.

    Args:
        model: the pretrained model.
        task: name of the task.
        others: type of a model -> a builder of the task's own, for models whose family has none.

    Raises:
        MultiflowError: there is no such task, or the model cannot do it.
    """
    able = [*(model_type for model_type, _, known in model_types() if task in known.tasks), *others]
    any_type = {of.title: of.others.tasks for of in FAMILIES.values() if of.others is not None}
    able += [f"any of {title} that can" for title, tasks in any_type.items() if task in tasks and not able]
    if not able:
        types = [known.tasks for *_, known in model_types()]
        raise unknown("task", task, dict.fromkeys(task for tasks in (*types, *any_type.values()) for task in tasks))
    found = find_family(model)
    if found is None or task not in found[1].tasks:
        if type_of(model) in others:
            return others[type_of(model)]
        can = "none of the tasks" if found is None else ", ".join(found[1].tasks) or "none of the tasks"
        raise MultiflowError(
            f"a model of type '{type_of(model)}' cannot do task '{task}', which takes one of type {' or '.join(able)}; "
            f"it can do {can}"
        )
    if found[0].refuse is not None:
        found[0].get(found[0].refuse)(model, task)
    return found[0].get(found[0].task_models[task])


def find_preset(name: str, model: Any, task: str) -> Preset:
    """Return the hyper-parameters of a preset for the family of a model and a task.

    Raises:
        MultiflowError: there is no such preset, or it has nothing for such models.
    """
    having = {of: family.presets[name] for of, family in FAMILIES.items() if name in family.presets}
    if not having:
        raise unknown("preset", name, dict.fromkeys(name for family in FAMILIES.values() for name in family.presets))
    family = family_of(model)
    presets = {} if family is None else family.presets.get(name, {})
    if task not in presets:
        known = ", ".join(f"{of} for {what}" for of, tasks in having.items() for what in tasks)
        raise MultiflowError(
            f"preset '{name}' has no hyper-parameters to fine-tune a model of type '{type_of(model)}' for task "
            f"'{task}'; it has those of {known}"
        )
    return presets[task]


Rule = tuple[str, str, bool]
"""Name of a size, what it must be, and whether it is."""


def complete(section: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the sizes of a section up with the defaults; a size that has no default is an error that names it.

    >>> complete("vision", {"layers": 4}, {"width": 768, "layers": 12})
    {'width': 768, 'layers': 4}
    """
    if not isinstance(given, Mapping):
        raise MultiflowError(f"{section} is {given!r}; it must map names to sizes: {', '.join(defaults)}")
    for key in given:
        if key not in defaults:
            raise unknown("size", f"{section}.{key}", [f"{section}.{name}" for name in defaults])
    return {**defaults, **given}


def check_towers(
    config: Any,
    top: Sequence[str],
    *,
    fractions: Collection[str],
    may_be_zero: Collection[str] = (),
    words: Collection[str] = ("act",),
    rules: Iterable[Rule] = (),
) -> None:
    """Check the sizes of a model with a tower for images, ``config.vision``, and one for texts, ``config.text``.

    Args:
        config: whose image_size, patch_size and towers fit together.
        top: names of its sizes that are of neither tower.
        fractions: names of sizes that need not be whole, and may be 0.
        may_be_zero: others that may be 0; all else is at least 1.
        words: names in the towers that are no sizes.
        rules: what must hold besides.

    Raises:
        MultiflowError: a size that breaks a rule.
    """
    vision, text = config.vision, config.text
    sizes = {name: getattr(config, name) for name in top}
    for tower, own in (("vision", vision), ("text", text)):
        sizes |= {f"{tower}.{name}": size for name, size in own.items() if name not in words}
    for name, size in sizes.items():
        least = 0 if name in fractions or name in may_be_zero else 1
        whole = isinstance(size, int) or name in fractions
        if not (whole and isinstance(size, int | float) and size >= least):
            raise MultiflowError(f"{name} is {size!r}; it must be a number of at least {least}")
    common: list[Rule] = [
        ("image_size", "a multiple of patch_size", config.image_size % config.patch_size == 0),
        ("vision.width", "a multiple of vision.heads", vision["width"] % vision["heads"] == 0),
        ("text.width", "a multiple of text.heads", text["width"] % text["heads"] == 0),
        ("text.encoder_width", "equal to vision.width", text["encoder_width"] == vision["width"]),
    ]
    check_rules(sizes, [*common, *rules])
    from transformers.activations import ACT2FN

    for name in (vision["act"], text["act"]):
        if name not in ACT2FN:
            raise unknown("activation", str(name), sorted(ACT2FN))


def check_rules(sizes: Mapping[str, Any], rules: Iterable[Rule]) -> None:
    for name, rule, holds in rules:
        if not holds:
            raise MultiflowError(f"{name} is {sizes[name]}; it must be {rule}")
