"""The pieces in which a model is walked, and what is done with its modules meanwhile.

A *unit* is what comes and goes as a whole: a block (a class that the model names in ``_no_split_modules``, or a member
of a numbered stack that holds layers), or the largest module beside blocks. What lies around units only calls them:
it is run again and again, and is told the results of units that have run before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.base.offload import stored_value
from multiflow.base.types import Layer, Layout

LIGHT = 1 << 22  # bytes of a unit without layers that is kept in memory throughout
Call = Callable[["Unit", Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""``f(unit, run, args, kwargs) -> output``: what happens when a unit is called; ``run`` is its own forward."""


@dataclass(frozen=True)
class Unit:
    """A module that comes and goes as a whole, or one around such modules.

    Args:
        number: in module order.
        path: of the module.
        layers: the prunable layers in it.
        is_block: whether it has a turn of its own: it is a block, or holds prunable layers.
        is_around: whether it contains units, and is none itself.
        size: bytes of its weights.
    """

    number: int
    path: str
    layers: tuple[Layer, ...] = ()
    is_block: bool = False
    is_around: bool = False
    size: int = 0

    @property
    def comes_and_goes(self) -> bool:
        """Whether its weights are in memory only while it runs."""
        return not self.is_around and (self.is_block or self.size > LIGHT)


def find_units(model: nn.Module, layout: Layout) -> tuple[Unit, ...]:
    """Cut a model into units, and list the modules around them.

    Raises:
        MultiflowError: the model has no blocks, or a weight is shared by two of them.
    """
    modules = dict(model.named_modules())
    blocks = _blocks(model, modules, layout)
    if not blocks:
        raise MultiflowError(
            f"a {type(model).__name__} cannot be streamed: it names no blocks (_no_split_modules) and has no numbered "
            "stack of modules with layers to prune; prune it in memory"
        )
    around = {".".join(parts[:at]) for path in blocks for parts in [path.split(".")] for at in range(len(parts))}
    found: list[Unit] = []
    for path, module in modules.items():
        if any(path.startswith(f"{unit.path}.") for unit in found if not unit.is_around):
            continue
        if path in around:
            if path and _has_forward(module):
                found.append(Unit(len(found), path, is_around=True))
            continue
        size = sum(p.numel() * p.element_size() for p in module.parameters())
        layers = tuple(layer for layer in layout.layers if f"{layer.name}.".startswith(f"{path}."))
        if size:
            found.append(Unit(len(found), path, layers, path in blocks or bool(layers), size=size))
    _check_shared(layout, found)
    return tuple(found)


def _blocks(model: Any, modules: Mapping[str, nn.Module], layout: Layout) -> set[str]:
    names = set(getattr(model, "_no_split_modules", None) or ())
    found: list[str] = []
    for path, module in modules.items():
        inside = any(path.startswith(f"{block}.") for block in found)
        if path and type(module).__name__ in names and not inside and any(True for _ in module.parameters()):
            found.append(path)
    for layer in layout:
        if not any(f"{layer}.".startswith(f"{block}.") for block in found):
            stack = _in_stack(layer, modules)
            if stack and not any(block.startswith(f"{stack}.") for block in found):
                found.append(stack)
    return set(found)


def _in_stack(layer: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The outermost member of a numbered stack around a layer."""
    parts = layer.split(".")
    for at in range(1, len(parts) + 1):
        path = ".".join(parts[:at])
        holder = modules.get(".".join(parts[: at - 1]))
        if isinstance(holder, nn.ModuleList | nn.Sequential) and path in modules and _has_forward(modules[path]):
            return path
    return None


def _has_forward(module: nn.Module) -> bool:
    return not isinstance(module, nn.ModuleList | nn.ModuleDict)


def _check_shared(layout: Layout, units: Sequence[Unit]) -> None:
    for layer in layout.layers:
        homes = {
            unit.path
            for unit in units
            for path in layer.paths
            if not unit.is_around and f"{path}.".startswith(f"{unit.path}.")
        }
        if len(homes) > 1:
            one, other = sorted(homes)[:2]
            raise MultiflowError(
                f"layer '{layer.name}' is shared by '{one}' and '{other}', and is measured only when both have run; "
                f"leave it dense with exclude=r'^{layer.name}$', or prune in memory"
            )


class Stage:
    """The modules of a model while it is walked: which weights are there, and what a call of a unit does.

    Args:
        model: with weights that hooks of accelerate bring.
        units: of it.
        device: where it runs.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit], device: torch.device) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._units, self._device = units, device
        # owner, name there -> path of the owner, of each parameter that is elsewhere
        self._away = {
            path: [(name, p) for name, p in module._parameters.items() if p is not None and p.is_meta]
            for path, module in self._modules.items()
        }
        self._here: set[str] = set()

    def bring(self, unit: Unit) -> None:
        """Read the weights of a unit, if they are not there."""
        if unit.comes_and_goes and unit.path not in self._here:
            self._here.add(unit.path)
            for path, name, _ in self._parameters(unit.path):
                self._read(path, name)

    def forget(self) -> None:
        """Let go of the weights of all units but the light ones."""
        for unit in self._units:
            if unit.path in self._here and unit.comes_and_goes:
                self._here.discard(unit.path)
                for path, name, parameter in self._parameters(unit.path):
                    self._modules[path]._parameters[name] = _nothing(parameter, self._device)

    @contextmanager
    def calls_go_to(self, call: Call) -> Iterator[None]:
        """Let a call of a unit go to a function; everything is as before after the block."""
        forwards = {path: module.__dict__.get("forward") for path, module in self._modules.items()}
        buffers = [
            (module, name, value)
            for module in {id(one): one for one in self._modules.values()}.values()
            for name, value in module._buffers.items()
        ]
        try:
            # 1. no hook of accelerate brings anything by itself
            for module in self._modules.values():
                if "_old_forward" in module.__dict__:
                    module.forward = module.__dict__["_old_forward"]
            # 2. every weight looks as if it were there, without memory; those that are in no unit are
            for path, away in self._away.items():
                for name, parameter in away:
                    self._modules[path]._parameters[name] = _nothing(parameter, self._device)
            inside = [f"{unit.path}." for unit in self._units if unit.comes_and_goes]
            for path, away in self._away.items():
                if not any(f"{path}.".startswith(unit) for unit in inside):
                    for name, _ in away:
                        self._read(path, name)
            for module, name, value in buffers:
                if value is not None and not value.is_meta:
                    module._buffers[name] = value.to(self._device)
            # 3. units are called through the function
            for unit in self._units:
                module = self._modules[unit.path]
                module.forward = _calling(call, unit, module.forward)
            yield
        finally:
            for path, forward in forwards.items():
                module = self._modules[path]
                module.__dict__.pop("forward", None)
                if forward is not None:
                    module.forward = forward
            for path, away in self._away.items():
                for name, parameter in away:
                    self._modules[path]._parameters[name] = parameter
            for module, name, value in buffers:
                module._buffers[name] = value

    def _parameters(self, root: str) -> Iterator[tuple[str, str, Tensor]]:
        for path, away in self._away.items():
            if f"{path}.".startswith(f"{root}."):
                yield from ((path, name, parameter) for name, parameter in away)

    def _read(self, path: str, name: str) -> None:
        like = dict(self._away[path])[name]
        found = stored_value(self._modules, path, name)
        if found is None:
            raise MultiflowError(
                f"the weight '{path}.{name}' is in no file of the model; write it with it, and try again"
            )
        value = found.detach().to(self._device, like.dtype)
        value = value.clone() if value.data_ptr() == found.data_ptr() else value  # no file stays mapped
        self._modules[path]._parameters[name] = nn.Parameter(value, requires_grad=False)


def _calling(call: Call, unit: Unit, run: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return call(unit, run, args, kwargs)

    return forward


def _nothing(parameter: Tensor, device: torch.device) -> nn.Parameter:
    """Stand in for a weight that is not there: of its shape and type, all NaN, of the memory of one number."""
    fill = torch.nan if parameter.is_floating_point() else 0
    value = torch.full((), fill, dtype=parameter.dtype, device=device).expand(parameter.shape)
    return nn.Parameter(value, requires_grad=False)
