"""The sparse runtime: a copy of a model whose sparse layers compute with packed weights on the CPU.

Which kernel a layer takes, and whether it is packed at all, is measured once for each shape, share of zeros and number
of threads on this machine, and kept in the user's cache. No measurement is needed for results to be right: every way
computes the same product, in the precision that `sparse_runtime` says.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiflow.base import kernels as native
from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.files import read_json, write_atomically
from multiflow.base.guards import exclusively
from multiflow.base.types import Layout, is_hooked
from multiflow.formats.semi_structured import semi_structured
from multiflow.formats.sparse_linear import TOKENS, WAYS, FewLinear, SparseLinear, multiply, ways_of
from multiflow.formats.timing import in_turns
from multiflow.masks import Masks

RUNTIME_VALUES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.int8}
"""How kept weights are held -> their dtype."""

TURNS = 5
MOST_FLUSH = 48 << 20  # bytes: more than caches hold
LARGE = 1 << 19  # weights of a layer outside the masks that gets a short copy
MOST_KEPT = 0.6  # share of weights up to which blocks for `look`, which take more memory, may pay
DENSE = "dense"


@exclusively("sparse_runtime")
def sparse_runtime(
    model: nn.Module, masks: Masks, *, values: str = "bf16", weights: Mapping[str, Tensor] | None = None
) -> Any:
    """Return a copy of the model, for inference, whose masked layers compute with packed weights.

    On a GPU that is torch's semi-structured form, for masks of the pattern 2:4; the rest is about CPUs.

    The copy is called as the model is; ``generate()`` and ``state_dict()`` work. It is as large as a packed file in
    memory. Layers for which the dense product is faster at every number of tokens stay dense. Without a C++ compiler,
    or under gradients, weights are unpacked at each call: correct, but slow, and a warning says so.

    Args:
        model: on one device; it is not changed, whether the masks are applied already or not.
        masks: of this model.
        values: how kept weights are held: ``bf16`` (exact for a model in bfloat16, else rounded), ``fp32`` (exact), or
            ``int8`` with one scale a row; then inputs are rounded to 8 bits as well where that is faster. Large
            linear layers that no mask covers, such as the one that gives the words, get a copy in ``bf16`` or ``int8``
            for few tokens, where that is faster.
        weights: layer name -> the weight that a method changed, ``result.weights[sparsity]``; None = the model's own.

    Raises:
        MultiflowError: the masks are those of another model, a weight is on neither, the GPU has no sparse tensor
            cores or no layer is 2:4, or a name is unknown.

    >>> small = mf.sparse_runtime(model, result.masks[0.75])                    # doctest: +SKIP
    >>> small.generate(**inputs)                                                # doctest: +SKIP
    """
    if values not in RUNTIME_VALUES:
        raise unknown("coding of values", values, RUNTIME_VALUES)
    if not isinstance(masks, Masks):
        raise MultiflowError(f"masks is a {type(masks).__name__}; expected mf.Masks, such as result.masks[0.75]")
    found = masks.find_weights(model)
    places = {parameters[0].device for parameters in found.values()}
    if {place.type for place in places} == {"cuda"}:
        return semi_structured(model, masks, weights)
    for name, parameters in found.items():
        if parameters[0].device.type != "cpu":
            raise MultiflowError(
                f"layer '{name}' is on {parameters[0].device}; the sparse runtime is for CPUs, and for 2:4 masks on a "
                "GPU: model.to('cpu')"
            )
    masks.warn_of_misfit(model, weights, stacklevel=4)
    # 1. a copy without the weights that are about to be packed
    modules = dict(model.named_modules(remove_duplicate=False))
    packed = {
        layer.name
        for layer in masks.layout.layers
        if (not layer.part or _is_conv1d(modules.get(layer.name))) and all(is_hooked(p, modules) for p in layer.paths)
    }
    whole = [one for name in packed for one in found[name] if isinstance(one, nn.Parameter)]
    memo: dict[int, Any] = {id(one): _nothing(one) for one in whole}
    result = copy.deepcopy(model, memo)
    others = Layout(tuple(layer for layer in masks.layout.layers if layer.name not in packed))
    there = Masks(others, {name: masks.packed[name] for name in others}).find_places(result)
    # 2. one packed weight for each layer, and its kernels; layers that share a weight share it
    size = sum(parameters[0].nbytes for parameters in found.values())
    choose = _Chooser(min(size, MOST_FLUSH))
    for layer in masks.layout.layers:
        own = found[layer.name][0].detach()
        new = own if weights is None else weights.get(layer.name, own).to(own)
        dense = torch.where(masks[layer.name], new, new.new_zeros(()))
        if layer.name not in packed:  # a part of a parameter, or used by fused attention
            for place in there[layer.name]:
                place.weight.detach().copy_(dense)
            continue
        matrix = native.pack_matrix(dense, RUNTIME_VALUES[values])
        ways = choose(matrix, dense)
        if ways is None:
            kept = nn.Parameter((dense if layer.part is None else dense.T).clone(), requires_grad=False)
            for path in layer.paths:
                result.get_submodule(layer.module(path)).weight = kept
            continue
        looked = native.kernels().looked(matrix) if "look" in ways.values() else None
        for path in map(layer.module, layer.paths):
            module: Any = result.get_submodule(path)
            bias = module.bias
            if bias is not None:
                bias.requires_grad_(False)
            replacement = SparseLinear(matrix, bias, ways, looked).train(modules[path].training)
            result.set_submodule(path, replacement)
    # 3. large layers that no mask covers, such as the one that gives the words, are read from memory token by token
    if values != "fp32":
        covered = {layer.module(path) for layer in masks.layout.layers for path in layer.paths}
        _add_short_copies(result, covered, RUNTIME_VALUES[values], choose)
    choose.save()
    if hasattr(result, "save_pretrained") and any(hasattr(type(one), "only_computes") for one in result.modules()):
        vars(result)["save_pretrained"] = CannotBeSaved()
    return result


class CannotBeSaved:
    """In the place of ``save_pretrained`` of the copy, whose folder others would open with random weights."""

    def __call__(self, *_: Any, **__: Any) -> None:
        raise MultiflowError(
            "the sparse runtime computes with packed weights that transformers cannot read from a folder; write the "
            "model that it was made of, with mf.export(model, masks, path), and make mf.sparse_runtime of what "
            "mf.load_model(path) gives; torch.save keeps the copy as it is"
        )


def _add_short_copies(result: nn.Module, covered: set[str], kind: torch.dtype, choose: _Chooser) -> None:
    """Give large dense layers a copy in the kind of the kept values, where one is faster for few tokens."""
    for path, module in list(result.named_modules()):
        if type(module) is not nn.Linear or path in covered or module.weight.numel() < LARGE:
            continue
        matrix = native.pack_matrix(module.weight, kind, whole=True)
        most = choose.most_tokens(matrix, module.weight.detach())
        if most:
            few = SparseLinear(matrix, module.bias, dict.fromkeys(TOKENS, "few8" if kind == torch.int8 else "few"))
            result.set_submodule(path, FewLinear(module, few, most).train(module.training))


def _is_conv1d(module: nn.Module | None) -> bool:
    """Whether a module is a linear layer with a transposed weight, as GPT-2 has them."""
    return type(module).__name__ == "Conv1D"


def choices_file() -> Path:
    """Return where the measured choices are kept."""
    return native.cache_folder() / "choices.json"


def _nothing(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().new_empty(0), requires_grad=False)


class _Chooser:
    """Finds the kernels of layers by measuring, remembers them on disk."""

    def __init__(self, flush: int) -> None:
        self.flush = flush
        self.known: dict[str, list[str]] = {}
        self.new = False
        self.reason = ""
        try:
            if not native.kernels().level:
                warnings.warn(
                    f"the sparse runtime is slow here: its kernels have {native.LEVELS[0]} for this processor "
                    "(expected AVX2 or AVX-512); layers stay dense where that is faster",
                    stacklevel=5,
                )
            self.known = _read(choices_file())
        except native.NoKernelsError as error:
            warnings.warn(f"the sparse runtime has no kernels and is slow: {error}", stacklevel=5)
            self.reason = str(error)

    def __call__(self, matrix: native.PackedMatrix, dense: Tensor) -> dict[int, str] | None:
        """Return number of tokens -> way, or None where the dense product is always faster."""
        if self.reason or not matrix.rows * matrix.cols:
            return {}
        ways = self._measured(matrix, dense)
        if all(way.startswith(DENSE) for way in ways.values()):
            return None
        return {tokens: way.rpartition(" ")[2] for tokens, way in ways.items()}

    def most_tokens(self, matrix: native.PackedMatrix, dense: Tensor) -> int:
        """Return up to how many tokens ``few`` or ``few8`` is faster than the dense product; 0 = never."""
        if self.reason:
            return 0
        most = 0
        for tokens, way in self._measured(matrix, dense).items():
            if not way.startswith("few"):
                break
            most = tokens
        return most

    def _measured(self, matrix: native.PackedMatrix, dense: Tensor) -> dict[int, str]:
        kept = int(matrix.starts[-1]) / (matrix.rows * matrix.cols)
        words = (matrix.rows, matrix.cols, matrix.values.dtype, dense.dtype, round(20 * kept), self.flush >> 20)
        key = _key(*words, torch.get_num_threads(), native.kernels().path.name)
        if key not in self.known:
            self.known[key] = [_fastest(matrix, dense, tokens, self.flush) for tokens in TOKENS]
            self.new = True
        return dict(zip(TOKENS, self.known[key], strict=True))

    def save(self) -> None:
        """Write what was measured, if anything was; a cache that cannot be written is no loss."""
        if not self.new:
            return
        known = _read(choices_file()) | self.known
        try:
            write_atomically(choices_file(), lambda path: path.write_text(json.dumps(known, indent=0)))
        except MultiflowError:
            return


def _fastest(matrix: native.PackedMatrix, dense: Tensor, tokens: int, flush: int) -> str:
    """Return the fastest way; if the dense product is faster, ``dense`` and the fastest other one."""
    inputs = torch.randn(tokens, matrix.cols, generator=torch.Generator().manual_seed(0)).to(dense.dtype)
    packed = matrix.arguments
    ways: dict[str, Callable[[], Tensor]] = {}
    for way in ways_of(matrix.values.dtype, matrix.cols):
        if not (way in ("few", "few8") and tokens > 100):
            ways[way] = partial(multiply, way, packed, inputs, None)
    sparse = int(matrix.starts[-1]) < MOST_KEPT * matrix.rows * matrix.cols
    looked = native.kernels().looked(matrix) if sparse and native.kernels().level == 1 and tokens < 100 else None
    if looked is not None:
        ways["look"] = partial(multiply, "look", looked.arguments, inputs, None)
    with torch.inference_mode():
        timed = in_turns({**ways, DENSE: lambda: F.linear(inputs, dense)}, TURNS, flush, most=0.5)
    best = {name: min(timing.seconds) for name, timing in timed.items()}
    fastest = min(ways, key=lambda name: best[name] * (1.1 if name in ("unpack-bf16", "look") else 1.0))
    return fastest if best[fastest] <= best[DENSE] else f"{DENSE} {fastest}"


def _key(*words: object) -> str:
    return hashlib.sha256(" ".join(map(str, words)).encode()).hexdigest()[:16]


def _read(place: Path) -> dict[str, list[str]]:
    """Read the choices of before; a file that is not one of ours counts as none."""
    try:
        given = read_json(place)
    except MultiflowError:
        return {}
    known = {f"{start}{way}" for start in ("", f"{DENSE} ") for way in WAYS}
    return {
        key: ways
        for key, ways in (given.items() if isinstance(given, dict) else ())
        if isinstance(ways, list) and len(ways) == len(TOKENS) and known.issuperset(map(str, ways))
    }
