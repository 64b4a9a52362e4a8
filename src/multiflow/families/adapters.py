"""The known families, recognised by ``config.model_type``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError
from multiflow.base.registry import Registry
from multiflow.families.automatic import automatic_adapter

FAMILIES: Registry[Callable[[nn.Module], Adapter]] = Registry("model family", "multiflow.families", folders=True)
"""``model_type`` -> function that builds the adapter for a model of that type."""


def family(*model_types: str) -> Callable[[Callable[[nn.Module], Adapter]], Callable[[nn.Module], Adapter]]:
    """Register the function that builds the adapter of a family."""

    def register(build: Callable[[nn.Module], Adapter]) -> Callable[[nn.Module], Adapter]:
        for model_type in model_types:
            FAMILIES.add(model_type, build)
        return build

    return register


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
    from transformers import PreTrainedModel

    model_type = getattr(getattr(model, "config", None), "model_type", "")
    if model_type in FAMILIES:
        own = FAMILIES[model_type](model)
        if tokens != "all":
            raise MultiflowError(
                f"tokens='{tokens}' was given, but family '{own.name}' counts all tokens; leave it out"
            )
        return replace(
            own,
            groups=groups or own.groups,
            streams={**(streams or {}), **own.streams},
            exclude="|".join(regex for regex in (own.exclude, exclude) if regex) or None,
        )
    if isinstance(model, PreTrainedModel):
        return automatic_adapter(model, exclude=exclude, groups=groups, streams=streams, tokens=tokens)
    given = f"model_type '{model_type}'" if model_type else f"a {type(model).__name__} without config.model_type"
    raise MultiflowError(
        f"no adapter for {given}; known: {', '.join(FAMILIES)}, and all models of transformers; for any other model "
        "pass adapter=mf.Adapter(groups={'vision': r'regex of module paths', ...})"
    )
