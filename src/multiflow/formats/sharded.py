"""A pruned model as the shards of the dense one: copied tensor by tensor, pruned on the way.

The model is never in memory: a shard is read and written one tensor at a time, and only what masks or changed weights
touch is anything but a copy. Shards, names, types and the rest of the folder stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from multiflow.base.artifacts import read_kinds, read_one, write_lazily
from multiflow.base.errors import MultiflowError
from multiflow.base.files import copy_files, inner_files
from multiflow.base.offload import stored_value, weight_places
from multiflow.base.types import Layer, Layout, place_of
from multiflow.masks import Masks

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")
"""Endings of files that hold weights, and are not copied."""


def apply_to_shards(model: nn.Module, masks: Masks, changed: Mapping[str, Tensor] | None, folder: Path) -> None:
    """Write a pruned model into a folder, shard by shard.

    Args:
        model: as `open_streamed` gives it; left as it is.
        masks: made for it.
        changed: the weights that a method has changed, read when looked up; or None.
        folder: to write into.

    Raises:
        MultiflowError: masks of another model, weights that the source stores in another form than the model, or
            shards that are gone or cut since it was opened.
    """
    places = weight_places(model)
    wanted = _by_parameter(model, masks.layout)
    names = {place: name for name, place in places.items() if name in wanted}
    files = sorted({file for file, _ in places.values()})
    made = {file.parent for file in files if not (file.parent / "config.json").is_file()}
    if made:  # what was converted on loading lies elsewhere, by itself
        moved = next(name for name, (file, _) in places.items() if file.parent in made)
        raise MultiflowError(
            f"the weight '{moved}' is stored in another form than the model has it in, or not as safetensors, so that "
            "shards cannot be pruned one by one; apply the masks without --stream"
        )
    others = (path for path in files[0].parent.iterdir() if path.is_file() and not path.name.startswith("."))
    copy_files([*(path for path in others if path.suffix not in WEIGHTS), *inner_files(files[0].parent)], folder)
    for file in files:
        kinds, metadata = read_kinds(file)

        def load(key: str, file: Path = file) -> Tensor:
            value = read_one(file, key)
            if (name := names.get((file, key))) is None:
                return value
            return _pruned(model, name, wanted[name], masks, changed).to(value.dtype)

        write_lazily(folder / file.name, kinds, load, metadata)


def _by_parameter(model: nn.Module, layout: Layout) -> dict[str, list[Layer]]:
    """Name of a parameter -> the layers whose weights are in it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, list[Layer]] = {}
    for layer in layout.layers:
        for name in _parameters(modules, layer):
            found.setdefault(name, []).append(layer)
    return found


def _parameters(modules: Mapping[str, nn.Module], layer: Layer) -> list[str]:
    """The names of the parameters in which a layer's weight is: one, but for shared weights."""
    places = {path: place_of(modules, layer, path) for path in layer.paths}
    if missing := next((path for path, place in places.items() if place is None), None):
        raise MultiflowError(
            f"the masks are those of another model: it has no layer '{missing}'; use the model that they were made for"
        )
    return list(dict.fromkeys(f"{place.path}.{place.parameter}" for place in places.values() if place))


def _pruned(
    model: nn.Module, name: str, layers: list[Layer], masks: Masks, changed: Mapping[str, Tensor] | None
) -> Tensor:
    """Return a parameter with zeros, and changed weights, in all layers that are in it."""
    own = Masks.from_tensors(
        Layout(tuple(layers)),
        {layer.name: masks[layer.name] for layer in layers},
        weights={layer.name: masks.weights[layer.name] for layer in layers if layer.name in masks.weights},
    )
    new = None if changed is None else {layer.name: changed[layer.name] for layer in layers}
    modules = dict(model.named_modules(remove_duplicate=False))
    with _here(modules, [one for layer in layers for one in _parameters(modules, layer)]) as values:
        own.apply_(model, new)
        return values[name].detach()


@contextmanager
def _here(modules: Mapping[str, nn.Module], names: list[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Let some parameters be in memory inside the block."""
    before: list[tuple[nn.Module, str, nn.Parameter | None]] = []
    found: dict[str, nn.Parameter] = {}
    try:
        for name in dict.fromkeys(names):
            path, _, last = name.rpartition(".")
            value = stored_value(modules, path, last)
            assert value is not None
            before.append((modules[path], last, modules[path]._parameters[last]))
            found[name] = nn.Parameter(value.detach().clone(), requires_grad=False)
            modules[path]._parameters[last] = found[name]
        yield found
    finally:
        for module, last, parameter in before:
            module._parameters[last] = parameter
