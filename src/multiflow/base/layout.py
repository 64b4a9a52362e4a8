"""Finding the prunable layers of a model by the paths of its modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import nn
from torch.nn.parameter import UninitializedParameter

from multiflow.base.errors import MultiflowError, did_you_mean
from multiflow.base.types import Layer, Layout

STAYS_DENSE = (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
NO_PROJECTION = re.compile(
    r"(^|_)(embed|pos|cls|class|token|quer|prompt|mask|scale|gamma|bias|table|prototype|queue)", re.I
)
"""Parameters of two and more dimensions that are no projections by their own name: embeddings, tokens, tables."""


def find_layout(
    model: nn.Module, groups: Mapping[str, str], exclude: str | None, stream: Callable[[str], str | None]
) -> Layout:
    """List the linear layers that the groups match; see `Adapter.layout`."""
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = _weight_owners(modules)
    group_of: dict[str, str] = {}
    for path, module in modules.items():
        if exclude is not None and re.search(exclude, path):
            continue
        matches = [group for group, regex in groups.items() if re.search(regex, path)]
        if not matches:
            continue
        _refuse_unsupported(path, module, modules)
        if not isinstance(module, nn.Linear):
            continue
        if len(matches) > 1:
            raise MultiflowError(
                f"layer '{path}' is in two groups, '{matches[0]}' and '{matches[1]}'; it may be in one"
            )
        group_of[path] = matches[0]

    layers = []
    for path, group in group_of.items():
        weight = modules[path].weight
        users = owners[id(weight)]
        if path != next(user for user in users if user in group_of):
            continue  # an alias: it stands with the layer's first path
        others = tuple(user for user in users if user != path)
        for other in others:
            _check_alias(path, group, other, modules[other], group_of.get(other, group))
            if exclude is not None and re.search(exclude, other):
                raise MultiflowError(
                    f"layer '{path}' shares its weight with '{other}', which Adapter(exclude=r'{exclude}') keeps "
                    "dense; exclude both or neither"
                )
        layers.append(Layer(path, (weight.shape[0], weight.shape[1]), group, stream(path), others))
    for group, regex in groups.items():
        if not any(layer.group == group for layer in layers):
            raise _empty_group(group, regex, layers, modules)
    return Layout(tuple(layers))


def _weight_owners(modules: Mapping[str, nn.Module]) -> dict[int, list[str]]:
    """Identity of a weight -> the paths of all modules that hold it, in module order."""
    owners: dict[int, list[str]] = {}
    for path, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners.setdefault(id(weight), []).append(path)
    return owners


def _refuse_unsupported(path: str, module: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Refuse what holds projections but is no plain ``nn.Linear``, rather than leave it dense without a word."""
    kind = type(module).__name__
    fix = f"leave it dense with Adapter(exclude={_exactly(path)})"
    if isinstance(module, nn.Linear):
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise MultiflowError(
                f"'{path}' computes its weight from other tensors (a parametrization, or torch.nn.utils.prune); "
                f"make the weight a parameter again, or {fix}"
            )
        parent = modules.get(path.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            raise MultiflowError(f"'{path}' belongs to a fused nn.MultiheadAttention, which cannot be pruned; {fix}")
        if isinstance(module.weight, UninitializedParameter):
            raise MultiflowError(f"'{path}' is a {kind} without a shape yet; run the model on a batch first, or {fix}")
        if not module.weight.is_floating_point() or module.weight.element_size() < 2:
            raise MultiflowError(
                f"'{path}' has weights of {module.weight.dtype}; expected floating point of 16 bits or more; {fix}"
            )
        if module.weight.is_inference():
            raise MultiflowError(
                f"the weight of '{path}' was made inside torch.inference_mode(), so that nobody can tell when it "
                f"changes; make or load the model outside of it, or {fix}"
            )
        return
    if isinstance(module, STAYS_DENSE):
        return
    for name, parameter in module._parameters.items():
        looked_up = "Embed" in kind or NO_PROJECTION.search(name)
        if parameter is not None and parameter.dim() >= 2 and not looked_up:
            raise MultiflowError(
                f"'{path}' is a {kind} with the weight '{name}' {tuple(parameter.shape)}, which is no nn.Linear; {fix}"
            )


def _exactly(path: str) -> str:
    """The regex of a module path and no other, as it is written in Python."""
    return f"r'^{re.escape(path)}$'"


def _check_alias(path: str, group: str, other: str, module: nn.Module, other_group: str) -> None:
    if not isinstance(module, nn.Linear):
        raise MultiflowError(
            f"layer '{path}' shares its weight with '{other}', a {type(module).__name__}, which stays dense; "
            f"leave it out with Adapter(exclude={_exactly(path)})"
        )
    if other_group != group:
        raise MultiflowError(
            f"layer '{path}' shares its weight with '{other}' but they are in two groups, '{group}' and "
            f"'{other_group}'; put them into one"
        )


def _empty_group(group: str, regex: str, layers: list[Layer], modules: Mapping[str, nn.Module]) -> MultiflowError:
    linear = [path for path, module in modules.items() if isinstance(module, nn.Linear)]
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.group] = counts.get(layer.group, 0) + 1
    found = ", ".join(f"{name} ({count} layers)" for name, count in counts.items()) or "none"
    names = dict.fromkeys(part for path in linear for part in [path, *path.split(".")])
    hint = did_you_mean(regex.strip("^$.*\\"), names)
    example = f"; linear layers are called such as '{linear[0]}'" if linear else "; the model has no nn.Linear"
    return MultiflowError(f"no layer matches '{regex}' of group '{group}'; other groups: {found}{example}{hint}")
