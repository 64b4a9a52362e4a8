"""Guards: what no door of the library lets in, in one list with one sentence each.

`prune`, `calibrate`, ``masks.apply_``, `keep_sparse`, `export`, `task_model` and `recover` ask `check_layer` of every
layer that they touch, and `check_values` and `check_overlap` of its weight; what measures or trains runs inside
`exclusively`, one at a time for each model. What runs an offloaded model asks `check_device` of where it computes.
"""

from __future__ import annotations

import errno
import functools
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from multiflow.base.errors import MultiflowError

NO_MEMORY = re.compile(
    "not enough memory|can(?:'t|not) allocate memory|out of memory|could not create a primitive(?! desc)", re.I
)  # the last one is oneDNN's
DEPTH = re.compile(r"(layers?|depths?|blocks?)$")
"""Names in a config that count layers."""
MOST_LAYERS = 4096
NO_ROOM = re.compile("No space left|Read-only file system|quota exceeded", re.I)
NO_PLACE = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM)
"""Of a disk that takes no more, takes nothing, or not from this user."""

LEAST_LEFT = 2**24
"""Bytes that there must be for a reader that finds no memory to be told of a damaged file."""

F = TypeVar("F", bound=Callable[..., Any])

STAYS_DENSE = (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
NO_PROJECTION = re.compile(
    r"(^|_)(embed|pos|cls|class|token|quer|prompt|mask|scale|gamma|bias|table|prototype|queue)", re.I
)
"""Parameters of two and more dimensions that are no projections by their own name: embeddings, tokens, tables."""
QUANTISED = re.compile(r"quant(?!um|i[lt])|gptq|awq|hqq|eetq|bitnet|bitlinear|fp8|[48]bit", re.I)
"""Names of classes whose weights are packed numbers."""
QUANTISERS = re.compile(
    r"^(torch\.ao\.nn|torchao|bitsandbytes|auto_gptq|gptqmodel|awq|hqq|eetq|optimum\.quanto|quanto)\b"
)
"""Packages whose layers hold them."""
PACKED = re.compile(r"^(q_?weight|weight|w_?q|weight_?packed|packed_?weight)$", re.I)
"""Buffers that hold them."""
FACTORS = re.compile(r"^(lora|vera|dora|hada|lokr|loha|oft|boft|ia3)_\w+$", re.I)
"""Names under which libraries of adapters add small factors beside a layer, such as ``lora_A``."""
PEFT_LAYER = "BaseTunerLayer"
COMPILED = "_orig_mod"
"""Where torch.compile holds the model that it wraps."""
PLAIN = ("Tensor", "Parameter", "DTensor")
"""Types of weights, by name: those of a model that is split among processes are DTensors."""


def check_module(model: Any) -> None:
    """Refuse what is no model at all, such as its name, and a copy of a model that only computes."""
    if not isinstance(model, nn.Module):
        raise MultiflowError(f"model is a {type(model).__name__}; expected an nn.Module, such as mf.load_model gives")
    for path, module in model.named_modules():
        if (made_by := getattr(type(module), "only_computes", None)) is not None:
            raise MultiflowError(
                f"the model was made by {made_by} ('{path}' is a {type(module).__name__}), which is for computing "
                "only; give the model that it was made of"
            )


def check_layer(path: str, module: nn.Module, modules: Mapping[str, nn.Module], known: Collection[str] = ()) -> None:
    """Refuse what holds projections but is nothing that can be pruned, rather than leave it dense without a word.

    Args:
        path: of the module.
        module: any module that a group covers, or that a mask is for.
        modules: all of the model, by path.
        known: names of its parameters that hold layers (`multiflow.base.types`), beside those of an ``nn.Linear``.

    Raises:
        MultiflowError: it is quantised, parametrised, sparse, a factor of an adapter, not made yet, a parameter
            that nobody knows, ...
    """
    kind = type(module).__name__
    fix = f"leave it dense with Adapter(exclude={exactly(path)})"
    if is_factor(path, modules):
        raise MultiflowError(
            f"'{path}' is a factor that an adapter (LoRA, say) adds to a layer, and is never pruned; name the layer "
            f"itself in a group, or {fix}"
        )
    if isinstance(module, nn.Linear):
        weight = module._parameters.get("weight")
        if not isinstance(weight, nn.Parameter):
            raise MultiflowError(
                f"'{path}' computes its weight from other tensors (a parametrization, or torch.nn.utils.prune); "
                f"make the weight a parameter again, or {fix}"
            )
        known = ("weight",)
    elif isinstance(module, STAYS_DENSE):
        return
    packed = any(
        PACKED.match(name) and buffer is not None and buffer.dim() > 1 for name, buffer in module._buffers.items()
    )
    if not known and ((_is_quantised(module) and module.state_dict()) or packed):
        raise MultiflowError(f"'{path}' is a {kind} with quantised weights, which cannot be pruned; {fix}")
    for name in known:
        _check_parameter(path, module, module._parameters[name], fix)  # type: ignore[arg-type]
    for name, parameter in module._parameters.items():
        looked_up = not known and ("Embed" in kind or NO_PROJECTION.search(name))
        if parameter is None or name in known or parameter.dim() < 2 or looked_up:
            continue
        if isinstance(module, nn.Linear):
            raise MultiflowError(
                f"'{path}' is a {kind} that holds '{name}' {tuple(parameter.shape)} beside its weight, so it is no "
                f"ordinary nn.Linear; merge the two, or {fix}"
            )
        if not (known and (NO_PROJECTION.search(name) or min(parameter.shape[-2:]) == 1)):
            raise MultiflowError(
                f"'{path}' is a {kind} with the weight '{name}' {tuple(parameter.shape)}, which is no nn.Linear, "
                f"Conv1D, nn.MultiheadAttention or stack of experts; {fix}"
            )


def _check_parameter(path: str, module: nn.Module, weight: nn.Parameter, fix: str) -> None:
    kind = type(module).__name__
    if isinstance(weight, UninitializedParameter):
        raise MultiflowError(f"'{path}' is a {kind} without a shape yet; run the model on a batch first, or {fix}")
    check_device(path, weight.device)
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise MultiflowError(
            f"'{path}' has weights of {weight.dtype}; expected floating point of 16 bits or more; {fix}"
        )
    if _is_quantised(module):
        raise MultiflowError(f"'{path}' is a {kind} with quantised weights, which cannot be pruned; {fix}")
    if (form := type(weight.data).__name__) not in PLAIN:
        raise MultiflowError(
            f"'{path}' has a weight of type {form}, quantised or packed in another way, which cannot be pruned; {fix}"
        )
    if weight.layout != torch.strided:
        raise MultiflowError(
            f"'{path}' has a weight of layout {weight.layout}; make it dense with weight.to_dense(), or {fix}"
        )
    if weight.is_inference():
        raise MultiflowError(
            f"the weight of '{path}' was made inside torch.inference_mode(), so that nobody can tell when it "
            f"changes; make or load the model outside of it, or {fix}"
        )


def is_factor(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module is a small factor that a library of adapters has put beside a layer."""
    parts = path.split(".")
    for at, part in enumerate(parts[1:], start=1):
        if FACTORS.match(part):
            return True
        owner = modules.get(".".join(parts[:at]))
        if any(base.__name__ == PEFT_LAYER for base in type(owner).__mro__) and part != "base_layer":
            return True
    return bool(FACTORS.match(parts[0]))


def _is_quantised(module: nn.Module) -> bool:
    homes = {base.__name__: base.__module__ for base in type(module).__mro__}
    return any(
        QUANTISERS.match(home) or (QUANTISED.search(name) and not home.startswith("torch.nn."))
        for name, home in homes.items()
    )


def exactly(path: str) -> str:
    """Write the regex of a module path and no other, as it stands in Python."""
    return f"r'^{re.escape(path)}$'"


def check_seed(seed: Any) -> None:
    """Refuse a seed that is no whole number."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise MultiflowError(f"{{seed}} {seed!r} was given; expected a whole number, such as 0", field="seed")


def check_values(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not in memory: those on the meta device have a shape and no values."""
    for name, weight in weights.items():
        if weight.is_meta:
            raise MultiflowError(
                f"the weight of layer '{name}' is on the meta device, without values (offloaded, or never loaded); "
                "load the whole model into memory"
            )


def check_overlap(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights that share memory with another parameter, or within themselves: no part could be zeroed alone.

    A weight that several modules hold as one parameter is no such case.

    Args:
        model: all of it.
        weights: layers and their weights, which are parameters of the model.
    """
    layers = {id(weight): name for name, weight in weights}
    places: dict[int, list[_Extent]] = {}
    for name, parameter in model.named_parameters():
        plain = type(parameter.data) is Tensor and parameter.layout == torch.strided and not parameter.is_meta
        if not plain or isinstance(parameter, UninitializedParameter) or not parameter.numel():
            continue
        steps = [step * (size - 1) for step, size in zip(parameter.stride(), parameter.shape, strict=True)]
        if id(parameter) in layers and parameter.numel() > 1 + sum(steps):
            raise MultiflowError(
                f"the weight of layer '{layers[id(parameter)]}' is expanded: several of its entries are one number in "
                "memory; give each its own with weight.data = weight.data.contiguous()"
            )
        begin = parameter.storage_offset() * parameter.element_size()
        end = begin + (1 + sum(steps)) * parameter.element_size()
        place = parameter.untyped_storage().data_ptr()
        places.setdefault(place, []).append(_Extent(int(begin), int(end), name, parameter))
    for there in places.values():
        there.sort(key=lambda one: one.begin)
        for number, one in enumerate(there):
            for other in there[:number]:
                ours = id(one.parameter) in layers or id(other.parameter) in layers
                if other.end > one.begin and ours and _meet(other.parameter, one.parameter):
                    raise MultiflowError(
                        f"'{other.name}' and '{one.name}' are two parameters in the same memory, so that one cannot be "
                        "zeroed without the other; make them one parameter, or copy one with p.data = p.data.clone()"
                    )


class _Extent(NamedTuple):
    begin: int  # bytes from the beginning of the storage
    end: int
    name: str
    parameter: nn.Parameter


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether two views of a storage have an entry in common."""
    if one.dtype != other.dtype:
        return True
    marked = torch.zeros(one.untyped_storage().nbytes() // one.element_size(), dtype=torch.bool)
    marked.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(marked.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def check_device(path: str, device: torch.device) -> None:
    """Refuse a layer that computes where there is no float64, in which statistics and ranks are computed."""
    if device.type == "mps":
        raise MultiflowError(
            f"the weight of layer '{path}' is on device 'mps', which has no float64; work on the CPU: "
            "model.to('cpu'), or --device cpu"
        )


# one at a time, eager, and with a sentence where memory ends

_turn = threading.Condition()
_busy: dict[int, tuple[int, int]] = {}
"""Identity of a parameter -> the thread that works on it, and how often it has entered."""
_eager = 0
_stance: Any = None


def exclusively(what: str) -> Callable[[F], F]:
    """Let a function ``f(model, ...)`` run alone with the model's weights, in eager mode.

    A second thread with the same weights waits until the first is done. A model that was compiled runs as it is
    written, for compiled code calls no hooks, and its layers have the names that they had before. Memory that runs out
    is a `MultiflowError`, not what an allocator says.

    Args:
        what: the function does, for errors.
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def guarded(model: Any, *args: Any, **options: Any) -> Any:
            with alone(model), _running_eagerly(), naming_shortages(what):
                return function(uncompiled(model), *args, **options)

        return guarded  # type: ignore[return-value]

    return decorate


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the model that torch.compile has wrapped; any other is returned as it is."""
    while COMPILED in model._modules:
        model = model._modules[COMPILED]  # type: ignore[assignment]
    return model


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread works with any weight of the model inside such a block; then keep others out."""
    check_module(model)
    mine, me = {id(parameter) for parameter in model.parameters()}, threading.get_ident()
    with _turn:
        _turn.wait_for(lambda: all(_busy.get(one, (me, 0))[0] == me for one in mine))
        for one in mine:
            _busy[one] = me, _busy.get(one, (me, 0))[1] + 1
    try:
        yield
    finally:
        with _turn:
            for one in mine:
                times = _busy[one][1] - 1
                if times:
                    _busy[one] = me, times
                else:
                    del _busy[one]
            _turn.notify_all()


@contextmanager
def _running_eagerly() -> Iterator[None]:
    """Force eager mode while any thread is in here: it is one for the whole process."""
    global _eager, _stance
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to import it takes seconds
        yield
        return
    with _turn:
        _eager += 1
        if _eager == 1:
            _stance = torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        with _turn:
            _eager -= 1
            if not _eager:
                _stance.__exit__(None, None, None)


def is_shortage(error: BaseException) -> bool:
    """Whether an error is an allocator's word that there is no more memory: no reason to go another way."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(
        isinstance(error, RuntimeError | OSError) and NO_MEMORY.search(str(error))
    )


def says_shortage(said: str) -> bool:
    """Whether the text of an error says that there was no more memory."""
    return NO_MEMORY.search(said) is not None or MemoryError.__name__ in said


def raise_shortage(error: Exception, size: int = 0) -> None:
    """Raise a `MemoryError` where memory has ended, instead of letting a reader say that a file is damaged.

    Of a damaged file too, whose header claims too much, a decoder may say that memory ends.

    Args:
        error: that a reader has raised.
        size: bytes that the whole file takes when it is read, if that is known.
    """
    if is_shortage(error):
        bytearray(max(size, LEAST_LEFT))


@contextmanager
def naming_shortages(what: str) -> Iterator[None]:
    """Turn what allocators and disks say when they have no more into a sentence that says what was being done."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        if is_shortage(error):
            raise MultiflowError(
                f"{what} ran out of memory ({said}); free some, take smaller batches, fewer layers or sparsities at a "
                "time, or use a machine with more"
            ) from error
        if getattr(error, "errno", None) in NO_PLACE or NO_ROOM.search(said):
            raise MultiflowError(f"{what} cannot write ({said}); make room, or choose another place") from error
        raise


def check_depth(config: Mapping[str, Any], place: str) -> None:
    """Refuse a config that claims more layers than any model has, before they are built one by one.

    Args:
        config: names and values, nested where a model has several towers.
        place: where it was read, for the error.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_depth(value, place)
        elif DEPTH.search(name) and isinstance(value, int) and value > MOST_LAYERS:
            raise MultiflowError(
                f"the config of '{place}' claims {name}={value}; expected at most {MOST_LAYERS}: copy it again"
            )
