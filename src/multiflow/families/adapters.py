"""The known families, recognised by ``config.model_type``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError
from multiflow.base.registry import Registry

FAMILIES: Registry[Callable[[nn.Module], Adapter]] = Registry("model family", "multiflow.families", folders=True)
"""``model_type`` -> function that builds the adapter for a model of that type."""


def family(*model_types: str) -> Callable[[Callable[[nn.Module], Adapter]], Callable[[nn.Module], Adapter]]:
    """Register the function that builds the adapter of a family."""

    def register(build: Callable[[nn.Module], Adapter]) -> Callable[[nn.Module], Adapter]:
        for model_type in model_types:
            FAMILIES.add(model_type, build)
        return build

    return register


def adapter_for(model: nn.Module) -> Adapter:
    """Return the adapter of a model of a known family.

    >>> mf.adapter_for(xvlm).layout(xvlm).groups.keys()      # doctest: +SKIP
    dict_keys(['vision', 'text', 'fusion'])
    """
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    if model_type not in FAMILIES:
        given = f"model_type '{model_type}'" if model_type else f"a {type(model).__name__} without config.model_type"
        raise MultiflowError(
            f"no adapter for {given}; known: {', '.join(FAMILIES)}; for any other model pass "
            "adapter=mf.Adapter(groups={'vision': r'regex of module paths', ...})"
        )
    return FAMILIES[model_type](model)
