"""Compact models: neurons and heads that a mask has killed are removed, exactly; the rest computes what it did.

A neuron is dead if nothing reads it (its column is zero), or if it never says anything (its row and bias are zero,
and the activation of zero is zero). A head is dead if its columns are zero, or its values are. What remains is an
ordinary smaller model, whose config says the new sizes where it can; where it cannot, `multiflow.base.structure` says
them, and ``mf.load_model`` reads that.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter
from multiflow.base.errors import MultiflowError
from multiflow.base.guards import exclusively, is_shortage
from multiflow.base.structure import HEAD_COUNTS, SIZED_BY_HEADS, described, matrix_of, resize_, set_attributes_
from multiflow.base.types import Layout
from multiflow.calibration import evaluating
from multiflow.families import adapter_for
from multiflow.formats.examples import cast, example_batch
from multiflow.masks import Masks
from multiflow.pruning.units import HEADS, MLP, UnitStack, find_units

HIDDEN = re.compile(r"(^|_)(intermediate_size|mlp|mlp_dim|ffn_dim|d_ff|n_inner|d_inner|ffn_hidden_size|hidden_dim)$")
"""Entries of configs that may say how many neurons an MLP has."""
PROBE = 8  # how much an entry of a config is changed to see what it says
NEAR = {torch.bfloat16: 0.05, torch.float16: 0.01}  # share of the largest output; 0.001 in other dtypes


@exclusively("compact")
def compact(
    model: nn.Module,
    masks: Masks,
    weights: Mapping[str, Tensor] | None = None,
    *,
    adapter: Adapter | None = None,
    batch: Any = None,
) -> Any:
    """Return a copy of the model without the neurons and heads that the masks have killed; outputs are the same.

    Args:
        model: it is not changed, whether the masks are applied already or not.
        masks: of this model; those of `mf.prune_units` drop whole units, others kill some at high sparsity.
        weights: layer name -> the weight that a method changed, ``result.weights[sparsity]``; None = the model's own.
        adapter: of a model that the library does not know.
        batch: a batch of the model, on which the outputs are compared; None = random images and texts. Heads go
            only where that shows that the attention computes with fewer; a warning says where not.

    Returns:
        The smaller model. The config says its sizes if it can; else write it with
        ``mf.export(small, None, path, format="folder")``, which writes a file that says them.

    Raises:
        MultiflowError: the masks are those of another model, or the smaller model computes something else.

    >>> small = mf.compact(model, result.masks[0.5], result.weights[0.5])       # doctest: +SKIP
    """
    # 1. the sparse model, and what is dead in it
    masks.warn_of_misfit(model, weights, stacklevel=4)
    sparse = copy.deepcopy(model)
    with torch.no_grad():
        for name, own in masks.find_weights(sparse).items():
            for weight in own:
                if weights is not None and name in weights:
                    weight.copy_(weights[name])
                weight.masked_fill_(~masks[name].to(weight.device), 0.0)
    found = adapter or adapter_for(model)
    layout = found.layout(sparse)
    stacks = find_units(sparse, layout)
    dead = {stack.name: dead_units(sparse, stack) for stack in stacks}
    gone = [stack for stack in stacks if dead[stack.name].any()]
    inputs = _example(sparse, batch)

    # 2. neurons first, then the heads of one kind of attention after the other, as far as they compute the same
    taken = [stack for stack in gone if stack.kind == MLP]
    truth = None
    if inputs is not None:
        try:
            truth = _outputs(sparse, found, stacks, inputs)
        except Exception as error:  # what a model raises that wants other inputs is open
            if is_shortage(error):
                raise
            if batch is not None:
                raise MultiflowError(
                    f"the model does not run on the batch ({' '.join(str(error).split())[:200]})"
                ) from error
    small = _without(sparse, layout, taken, dead)
    if truth is not None and not _same(truth, _outputs(small, found, stacks, inputs), sparse):
        raise MultiflowError(
            "the model without its dead neurons computes something else; leave layers out with Adapter(exclude=...)"
        )
    stuck: dict[str, str] = {}
    for kind, of in _by_class(sparse, [stack for stack in gone if stack.kind == HEADS]).items():
        if truth is None:
            stuck[kind] = "there are no inputs to compare the outputs on; give a batch"
            continue
        try:
            fewer = _without(sparse, layout, [*taken, *of], dead)
            if not _same(truth, _outputs(fewer, found, stacks, inputs), sparse):
                raise ValueError("it computes something else")
        except Exception as error:  # what an attention raises that takes its sizes from elsewhere is open
            if is_shortage(error):
                raise
            stuck[kind] = f"it does not compute with fewer heads ({' '.join(str(error).split())[:100]})"
        else:
            small, taken = fewer, [*taken, *of]
    for kind, why in stuck.items():
        warnings.warn(f"dead heads of {kind} stay: {why}", stacklevel=3)

    # 3. a config that says the new sizes, if there is one
    _tell_config(small)
    return small


def dead_units(model: nn.Module, stack: UnitStack) -> Tensor:
    """Return which units have no effect, bool ``(count,)``; one always stays."""
    modules = dict(model.named_modules(remove_duplicate=False))
    unread = torch.ones(stack.count, dtype=torch.bool)
    for name, numbers in stack.columns.items():
        unread &= (_weight(modules[name]) == 0).all(0).cpu()[numbers].all(1)
    silent = torch.zeros(stack.count, dtype=torch.bool)
    for name, numbers in stack.rows.items():
        module: Any = modules[name]
        rows = (_weight(module) == 0).all(1).cpu()
        if module.bias is not None:
            rows &= (module.bias.detach() == 0).cpu()
        if stack.kind == HEADS and len(stack.rows) == 3 and name == list(stack.rows)[2]:
            silent |= rows[numbers].all(1)
        elif stack.kind == HEADS and len(stack.rows) == 1:
            silent |= rows[numbers[:, numbers.shape[1] // 3 * 2 :]].all(1)
        elif stack.kind == MLP and len(stack.rows) == 2:  # one factor of a product
            silent |= rows[numbers].all(1)
    dead = unread | silent
    if dead.all() and stack.count:
        dead[0] = False
    return dead


def _weight(module: Any) -> Tensor:
    return matrix_of(module).detach()


def _without(model: nn.Module, layout: Layout, stacks: Sequence[UnitStack], dead: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy without the dead units of some stacks."""
    small = copy.deepcopy(model)
    modules = dict(small.named_modules(remove_duplicate=False))
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    attributes: dict[str, dict[str, int]] = {}
    for stack in stacks:
        stays = ~dead[stack.name]
        for name, numbers in stack.rows.items():
            rows[name] = numbers[stays].flatten().sort().values
        for name, numbers in stack.columns.items():
            columns[name] = numbers[stays].flatten().sort().values
        if stack.kind == HEADS:
            for path, of in _fewer_heads(layout, stack, int(stays.sum()), modules):
                attributes[path] = of
    fresh: dict[int, Any] = {}
    for name in dict.fromkeys([*rows, *columns]):
        out, inner = layout[name].shape
        for path in (*layout[name].paths, *_copies(name, modules)):
            resize_(modules[path], rows.get(name, torch.arange(out)), columns.get(name, torch.arange(inner)), fresh)
    set_attributes_(small, attributes)
    return small


def _copies(name: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the path of the slow copy of a layer, in a tower of the same name with ``_m`` behind it, if there is."""
    tower, _, rest = name.partition(".")
    path = f"{tower}_m.{rest}"
    return [path] if isinstance(modules.get(path), nn.Linear) else []


def _fewer_heads(
    layout: Layout, stack: UnitStack, count: int, modules: Mapping[str, nn.Module]
) -> Iterator[tuple[str, dict[str, int]]]:
    """Give the numbers that the modules around an attention hold of its heads, as they are with fewer of them."""
    first, out = next(iter(stack.rows)), next(iter(stack.columns))
    for path in (*layout[first].paths, *layout[out].paths, *_copies(first, modules), *_copies(out, modules)):
        around = path.rpartition(".")[0]
        for _ in range(2):
            holder = modules.get(around)
            if holder is None or not around or re.search(r"\.\d+$", around):
                break
            of: dict[str, int] = {}
            for name in (*HEAD_COUNTS, *SIZED_BY_HEADS):
                value = vars(holder).get(name)
                if isinstance(value, int) and not isinstance(value, bool) and value * count % stack.count == 0:
                    of[name] = value * count // stack.count
            if of and any(name in HEAD_COUNTS for name in of):
                yield around, of
            around = around.rpartition(".")[0]


def _by_class(model: nn.Module, stacks: Sequence[UnitStack]) -> dict[str, list[UnitStack]]:
    """Group stacks by the class of the module that they are in."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, list[UnitStack]] = {}
    for stack in stacks:
        found.setdefault(type(modules.get(stack.name, model)).__name__, []).append(stack)
    return found


def _example(model: nn.Module, batch: Any) -> Any:
    if batch is not None:
        return cast(batch, model)
    try:
        return cast(example_batch(model, 2), model)
    except MultiflowError:
        return None


def _outputs(model: nn.Module, adapter: Adapter, stacks: Sequence[UnitStack], inputs: Any) -> list[Tensor]:
    """Return what the last layer of every MLP and attention gives, in the order of the calls."""
    given: list[Tensor] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out: given.append(out.detach().float().cpu()))
        for name in dict.fromkeys(name for stack in stacks for name in stack.columns)
    ]
    try:
        with torch.inference_mode(), evaluating(model):
            adapter.forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return given


def _same(truth: Sequence[Tensor], given: Sequence[Tensor], model: nn.Module) -> bool:
    near = NEAR.get(next(model.parameters()).dtype, 1e-3)
    return len(truth) == len(given) and all(
        a.shape == b.shape and bool((a - b).abs().max() <= near * a.abs().max() + 1e-6)
        for a, b in zip(truth, given, strict=True)
        if a.numel()
    )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _tell_config(model: Any) -> None:
    """Change the entries of the config that say how many neurons there are, if it can say all of them."""
    plain = described(model)
    if plain is None or _shapes(plain) == (ours := _shapes(model)):
        return
    before = model.config
    config = copy.deepcopy(before)
    model.config = config
    for holder, key in list(_entries(config)):
        old, dense = _get(holder, key), _shapes(described(model) or plain)
        _set(holder, key, old + PROBE)
        probe = described(model)
        new = old
        for name, shape in {} if probe is None else _shapes(probe).items():
            at = next((i for i, (a, b) in enumerate(zip(shape, dense[name], strict=True)) if a != b), None)
            if at is not None and name in ours:
                new = ours[name][at]
                break
        _set(holder, key, new)
    after = described(model)
    if after is None or _shapes(after) != ours:
        model.config = before
        return
    for module in model.modules():  # parts of a model hold the config, or a part of it
        for name, value in list(vars(module).items()):
            if value is before:
                setattr(module, name, config)


def _entries(config: Any, depth: int = 3) -> Iterator[tuple[Any, str]]:
    """Give the places in a config and its parts that may say numbers of neurons."""
    items = config.items() if isinstance(config, dict) else vars(config).items()
    for key, value in list(items):
        if isinstance(value, int) and not isinstance(value, bool) and HIDDEN.search(str(key)):
            yield config, key
        elif depth and (isinstance(value, dict) or hasattr(value, "to_dict")):
            yield from _entries(value, depth - 1)


def _get(holder: Any, key: str) -> int:
    return holder[key] if isinstance(holder, dict) else getattr(holder, key)


def _set(holder: Any, key: str, value: int) -> None:
    if isinstance(holder, dict):
        holder[key] = value
    else:
        setattr(holder, key, value)
