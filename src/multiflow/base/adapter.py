"""`Adapter`: what the library must know of a model, and nothing more.

Which linear layers are prunable and how they group; whose padding each layer's input follows; how to run the model on
a calibration batch; what its pretraining loss is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from multiflow.base.errors import MultiflowError, counted, did_you_mean
from multiflow.base.guards import check_layer, check_overlap, exactly, is_factor
from multiflow.base.registry import resolve
from multiflow.base.types import Layer, Layout, LiveWeights, WeightPart, weights_of

Forward = Callable[[nn.Module, Any], Any]
Loss = Callable[[nn.Module, Any], Tensor]
TokenMask = Tensor | Callable[[str, Tensor], Tensor | None] | None
"""Which tokens of a stream are real: a bool mask, or ``f(path, input) -> mask`` for masks that depend on the input."""
TokenMasks = Callable[[Any], Mapping[str, TokenMask]]


def call(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch: a mapping as keyword arguments, a tuple or list as arguments, else one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@dataclass(frozen=True)
class Adapter:
    """How to prune a model that the library does not know.

    Args:
        groups: group name -> regex, searched in module paths (without ``.weight``); every ``nn.Linear`` it finds is
            prunable, and so are transformers' ``Conv1D``, the projections of an ``nn.MultiheadAttention`` (layers
            ``PATH.q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``) and stacked weights of experts (each a layer
            ``PATH.NAME.NUMBER``). Factors that an adapter has added beside a layer, such as ``lora_A``, never are.
            Layers in no group stay dense.
        forward: ``f(model, batch)`` that runs the model for calibration; by default the model is called with the
            batch (a mapping as keyword arguments, a tuple as arguments).
        loss: ``f(model, batch) -> scalar``; needed only by pruners that use gradients.
        streams: regex -> stream, searched in module paths: whose padding mask the inputs of those layers follow.
            The first match counts; layers without a stream have no padding.
        token_masks: ``f(batch) -> {stream: bool (B, L)}``, True = a real token; None for a stream without padding; a
            function ``f(path, input)`` of a layer's input for streams in which lengths differ from layer to layer.
        idle: ``f(model)``, only for a loss in which several processes tell each other something: what one without a
            batch does meanwhile, once for each part of a batch.
        forward_moves_buffers: whether ``forward`` may change buffers of the model, which are then put back; False
            spares a copy of them.
        exclude: regex of module paths that stay dense although a group matches them.
        outputs: ``f(model, batch) -> {name: tensor}``, what the model is for: recovery compares it with that of the
            dense model, ``...logits`` and ``similarity`` (images by texts) as distributions, all else by distance. It
            runs the model in every way that it is used. By default what ``forward`` returns.
        transposed: regex of parameters, such as ``experts.w1$``, that stack weights stored ``(in, out)`` where the
            module's own sizes do not tell.
        dense: path of a layer, or name of a parameter, that stays dense -> why, for lists.
        towers: path of a sub-model -> its group, for the share of it that can be pruned.
        spares_unused: whether layers of which nothing in the output of ``forward`` depends, as a look at some samples
            shows, stay dense and out of the budget, which is said.
        name: what lists and reports call it.

    Example:
        >>> adapter = mf.Adapter(groups={"vision": r"^encoder\\.", "text": r"^decoder\\."})     # doctest: +SKIP
        >>> mf.prune(model, "wanda", sparsity=0.5, batches=batches, adapter=adapter)            # doctest: +SKIP
    """

    groups: Mapping[str, str]
    forward: Forward = call
    loss: Loss | None = None
    streams: Mapping[str, str] = field(default_factory=dict)
    token_masks: TokenMasks | None = None
    idle: Callable[[nn.Module], object] | None = None
    forward_moves_buffers: bool = True
    exclude: str | None = None
    outputs: Callable[[nn.Module, Any], Mapping[str, Tensor]] | None = None
    transposed: str | None = None
    dense: Mapping[str, str] = field(default_factory=dict, repr=False)
    towers: Mapping[str, str] = field(default_factory=dict, repr=False)
    spares_unused: bool = False
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.groups:
            raise MultiflowError("an adapter needs at least one group, such as groups={'vision': r'^encoder'}")
        if self.streams and self.token_masks is None:
            raise MultiflowError(
                f"an adapter with streams {sorted(set(self.streams.values()))} needs token_masks=f(batch), which says "
                "for each stream which tokens are real"
            )
        check_regexes([*self.groups.values(), *self.streams, *filter(None, (self.exclude, self.transposed))])

    def layout(self, model: nn.Module) -> Layout:
        """List the prunable layers of a model, in module order; what does not fit is an error that names it."""
        paths = layer_paths(model, self.transposed)
        for regex in [*self.streams, *([self.exclude] if self.exclude else [])]:
            if not any(re.search(regex, path) for path in paths):
                what = "streams" if regex in self.streams else "exclude"
                raise MultiflowError(
                    f"'{regex}' of {what} matches no module{did_you_mean(regex.strip('^$'), paths)}; "
                    f"modules are called such as '{paths[-1]}'"
                )
        return _find_layout(model, self)

    def stream(self, path: str) -> str | None:
        """Whose padding mask the input of the module, or the layer, at this path follows."""
        return next((stream for regex, stream in self.streams.items() if re.search(regex, path)), None)


def check_regexes(regexes: Iterable[str]) -> None:
    """Refuse what is no regular expression."""
    for regex in regexes:
        try:
            re.compile(regex)
        except re.error as error:
            raise MultiflowError(f"'{regex}' is not a regular expression ({error})") from error


def layer_paths(model: nn.Module, transposed: str | None = None) -> list[str]:
    """List the paths in which regexes are searched: of all modules, and the names of layers inside of them."""
    paths: dict[str, None] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths[path] = None
        paths |= dict.fromkeys(weights_of(path, module, transposed))
    return list(paths)


def lay_mask(mask: TokenMask, path: str, value: Tensor) -> Tensor | None:
    """Return the mask of one layer's input ``(..., in)``."""
    return mask(path, value) if callable(mask) else mask


def regex_of(paths: Iterable[str], all_paths: Iterable[str]) -> str:
    """Return a regex that finds these module paths and no others, numbers of blocks as ``\\d+`` where that is exact.

    >>> regex_of(["layers.0.fc", "layers.1.fc"], ["layers.0.fc", "layers.1.fc", "layers.1.norm"])
    '^layers\\\\.\\\\d+\\\\.fc$'
    """
    wanted = dict.fromkeys(paths)
    shapes: dict[str, list[str]] = {}
    for path in wanted:
        shapes.setdefault(_numbers(path), []).append(path)
    there: dict[str, set[str]] = {}
    for path in all_paths:
        there.setdefault(_numbers(path), set()).add(path)
    tails: dict[str, dict[str, None]] = {}
    for shape, found in shapes.items():
        exact = set(found) == there[shape]
        for pattern in [shape] if exact else [re.escape(path) for path in found]:
            cut = pattern.rfind(r"\d+\.") + 5 if r"\d+\." in pattern else 0
            tails.setdefault(pattern[:cut], {})[pattern[cut:]] = None
    parts = [head + (next(iter(of)) if len(of) == 1 else f"({'|'.join(of)})") for head, of in tails.items()]
    return f"^{parts[0]}$" if len(parts) == 1 else f"^({'|'.join(parts)})$"


def _numbers(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\\\.|$)", lambda _: r"\d+", re.escape(path))


def prunable_shares(model: nn.Module, layout: Layout, towers: Mapping[str, str]) -> dict[str, float]:
    """Return the share of all weights that layers may lose: of the ``model``, and of each group's towers."""
    sizes = {layer.name: layer.size for layer in layout.layers}
    total = sum(parameter.numel() for parameter in model.parameters())
    shares = {"model": layout.size / total}
    for group in dict.fromkeys(towers.values()):
        roots = [path for path, of in towers.items() if of == group]
        inside = {id(p): p.numel() for path in roots for p in model.get_submodule(path).parameters()}
        own = sum(size for name, size in sizes.items() if any(f"{name}.".startswith(f"{path}.") for path in roots))
        if inside:
            shares[group] = own / sum(inside.values())
    return shares


def parts(batch: Any) -> list[Any]:
    """Split a batch that carries a ``region`` batch into the two; any other batch is one part."""
    if not isinstance(batch, Mapping) or not isinstance(batch.get("region"), Mapping):
        return [batch]
    general = {name: value for name, value in batch.items() if name != "region"}
    return [*([general] if general else []), dict(batch["region"])]


def require(batch: Any, *names: str) -> None:
    """Check that a batch is a mapping with these keys."""
    if not isinstance(batch, Mapping):
        raise MultiflowError(f"a batch is a {type(batch).__name__}; expected a dict with {', '.join(names)}")
    for name in names:
        if name not in batch:
            raise MultiflowError(
                f"a batch has no '{name}'; it has {', '.join(map(str, batch)) or 'nothing'}, "
                f"and needs {', '.join(names)}"
            )


def of_families(name: str) -> Callable[[nn.Module], Any]:
    """Return a function of `multiflow.families`, found by name: what lies below the families imports nothing of them.

    >>> of_families("family:adapter_for").__name__
    'adapter_for'
    """
    return resolve(f"multiflow.families.{name}")


def _find_layout(model: nn.Module, adapter: Adapter) -> Layout:
    modules = dict(model.named_modules(remove_duplicate=False))
    exclude = adapter.exclude
    found: dict[str, WeightPart | None] = {}  # every weight of a kind that can be pruned
    home: dict[str, str] = {}  # its module
    group_of: dict[str, str] = {}
    factors: dict[str, str] = {}  # group -> the first factor of an adapter that it covers
    unfit: set[str] = set()  # what is left dense as a whole, with all that it is made of
    for path, module in modules.items():
        weights = weights_of(path, module, adapter.transposed)
        known = {part.parameter for part in weights.values() if part}
        found |= weights
        home.update((name, path) for name in weights)
        matches = _matching(adapter.groups, path)
        own = {name: list(dict.fromkeys([*matches, *_matching(adapter.groups, name)])) for name in weights}
        if exclude is not None and re.search(exclude, path):
            if matches and not _is_fit(path, module, modules, known):
                unfit.add(path)
            continue
        if not (matches or any(own.values())) or any(path.startswith(f"{one}.") for one in unfit):
            continue
        if is_factor(path, modules):
            if isinstance(module, nn.Linear):
                for group in matches:
                    factors.setdefault(group, path)
            continue
        wanted = {name: of for name, of in own.items() if of and not (exclude and re.search(exclude, name))}
        if matches or wanted:
            check_layer(path, module, modules, known)
        for name, of in wanted.items():
            if len(of) > 1:
                raise MultiflowError(f"layer '{name}' is in two groups, '{of[0]}' and '{of[1]}'; it may be in one")
            group_of[name] = of[0]

    owners = _weight_owners(modules, found, home)
    layers = []
    for name, group in group_of.items():
        module, part = modules[home[name]], found[name]
        users = owners[_identity(module, part)]
        if name != next(user for user in users if user in group_of):
            continue  # an alias: it stands with the layer's first path
        others = tuple(user for user in users if user != name)
        for other in others:
            _check_alias(name, group, other, modules, found, group_of.get(other, group))
            if exclude is not None and re.search(exclude, other):
                raise MultiflowError(
                    f"layer '{name}' shares its weight with '{other}', which Adapter(exclude=r'{exclude}') keeps "
                    "dense; exclude both or neither"
                )
        weight = module._parameters[part.parameter if part else "weight"]
        rows, columns = (part.view(weight) if part else weight).shape
        layers.append(Layer(name, (rows, columns), group, adapter.stream(name), others, part))
    for group, regex in adapter.groups.items():
        if not any(layer.group == group for layer in layers):
            if group in factors:
                check_layer(factors[group], modules[factors[group]], modules)
            raise _empty_group(group, regex, layers, modules)
    layout = Layout(tuple(layers))
    check_overlap(model, [(name, place.whole) for name, place in LiveWeights(model, layout).places.items()])
    return layout


def _matching(groups: Mapping[str, str], path: str) -> list[str]:
    return [group for group, regex in groups.items() if re.search(regex, path)]


def _is_fit(path: str, module: nn.Module, modules: Mapping[str, nn.Module], known: Collection[str]) -> bool:
    try:
        check_layer(path, module, modules, known)
    except MultiflowError:
        return False
    return True


def _identity(module: nn.Module, part: WeightPart | None) -> tuple[Any, ...]:
    """What tells one weight from another."""
    if part is None:
        return (id(module._parameters.get("weight")),)
    return (id(module._parameters[part.parameter]), *([] if part.index is None else [part.index]), *(part.rows or ()))


def _weight_owners(
    modules: Mapping[str, nn.Module], found: Mapping[str, WeightPart | None], home: Mapping[str, str]
) -> dict[tuple[Any, ...], list[str]]:
    """What tells a weight -> its names by all modules that hold it, in module order."""
    names: dict[str, list[str]] = {}
    for name, path in home.items():
        names.setdefault(path, []).append(name)
    owners: dict[tuple[Any, ...], list[str]] = {}
    for path, module in modules.items():
        for name in names.get(path, []):
            owners.setdefault(_identity(module, found[name]), []).append(name)
        if path not in names and module._parameters.get("weight") is not None:
            owners.setdefault(_identity(module, None), []).append(path)
    return owners


def _check_alias(
    name: str,
    group: str,
    other: str,
    modules: Mapping[str, nn.Module],
    found: Mapping[str, WeightPart | None],
    other_group: str,
) -> None:
    if other not in found or found[other] != found[name]:
        kind = type(modules[other]).__name__ if other in modules else "layer that stores it in another way"
        raise MultiflowError(
            f"layer '{name}' shares its weight with '{other}', a {kind}, which stays dense; "
            f"leave it out with Adapter(exclude={exactly(name)})"
        )
    if other_group != group:
        raise MultiflowError(
            f"layer '{name}' shares its weight with '{other}' but they are in two groups, '{group}' and "
            f"'{other_group}'; put them into one"
        )


def _empty_group(group: str, regex: str, layers: list[Layer], modules: Mapping[str, nn.Module]) -> MultiflowError:
    linear = [name for path, module in modules.items() for name in weights_of(path, module)]
    counts: dict[str, int] = {}
    for layer in layers:
        counts[layer.group] = counts.get(layer.group, 0) + 1
    found = ", ".join(f"{name} ({counted(count, 'layer')})" for name, count in counts.items()) or "none"
    names = dict.fromkeys(part for path in linear for part in [path, *path.split(".")])
    hint = did_you_mean(regex.strip("^$.*\\"), names)
    example = f"; linear layers are called such as '{linear[0]}'" if linear else "; the model has none"
    return MultiflowError(f"no layer matches '{regex}' of group '{group}'; other groups: {found}{example}{hint}")
