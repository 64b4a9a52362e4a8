"""Models that a library of adapters (peft) has wrapped: where the layers of the model inside are now.

peft puts a layer of its own around each layer that it adapts, the old one inside as ``base_layer``; of a module that is
trained whole it keeps the old one and a copy for each adapter; and it holds the model in one or two objects. Masks know
layers by their paths from before. Everything is told by names of classes: nothing of peft is imported.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from multiflow.base.guards import PEFT_LAYER, uncompiled

HOLDERS = ("PeftModel", "PeftMixedModel")
COPIED = "ModulesToSaveWrapper"


def layer_places(model: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
    """Return path -> the modules there, as paths are without adapters; several where adapters have copies.

    Paths as they are with adapters lead to their modules as well. Without any, there is one module to each path.

    >>> layer_places(nn.Sequential(nn.Linear(2, 2)))["0"]
    (Linear(in_features=2, out_features=2, bias=True),)
    """
    places: dict[str, tuple[nn.Module, ...]] = {}
    inner = inside(model)
    if inner is not model or any(is_wrapper(module) for module in model.modules()):
        for path, module in _walk(inner, ""):
            there = places.get(path, ())
            places[path] = there if any(module is one for one in there) else (*there, module)
    for path, module in model.named_modules(remove_duplicate=False):
        places.setdefault(path, (module,))
    return places


def inside(model: nn.Module) -> nn.Module:
    """Return the model that peft or torch.compile holds; any other is returned as it is."""
    while _is_a(model := uncompiled(model), *HOLDERS):
        model = model.get_base_model()  # type: ignore[operator]
    return model


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module stands in the place of another one, which it holds."""
    return _is_a(module, PEFT_LAYER, COPIED)


def tuned_layers(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield each layer that an adapter has put around another, with that one."""
    for module in model.modules():
        if _is_a(module, PEFT_LAYER) and isinstance(module._modules.get("base_layer"), nn.Module):
            layer = module
            while _is_a(layer, PEFT_LAYER):
                layer = layer.base_layer  # type: ignore[assignment]
            yield module, layer


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if _is_a(module, PEFT_LAYER):
        if isinstance(base := module._modules.get("base_layer"), nn.Module):
            yield from _walk(base, path)
        return
    if _is_a(module, COPIED):
        for copy in (module.original_module, *module.modules_to_save.values()):  # type: ignore[operator]
            yield from _walk(copy, path)
        return
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{path}.{name}" if path else name)


def _is_a(module: nn.Module, *names: str) -> bool:
    return any(base.__name__ in names for base in type(module).__mro__)
