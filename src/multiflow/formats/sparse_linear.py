"""A linear layer that computes with packed weights."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiflow.base.errors import MultiflowError
from multiflow.base.kernels import (
    MOST_COLUMNS,
    Arguments,
    Kernels,
    LookedArguments,
    LookedMatrix,
    NoKernelsError,
    PackedMatrix,
    kernels,
)

TOKENS = (1, 8, 64, 256)
"""Numbers of tokens at which kernels are compared; a call takes the kernel of the nearest one, by their ratio."""

BETWEEN = tuple(math.sqrt(few * more) for few, more in pairwise(TOKENS))

BLOCKS = ("blocks", "starts", "columns", "values")
"""What a `LookedMatrix` holds beside its scales."""
STORED_AS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.int8: torch.int8}
"""Values are kept as whole numbers of their size, which ``model.to(dtype)`` leaves alone."""
WAYS = ("few", "few8", "look", "walk", "unpack", "unpack-bf16")


class SparseLinear(nn.Module):
    """``inputs @ weight.T + bias`` with a packed weight; for inference.

    Inputs that need a gradient, lie on a GPU, or meet a machine without kernels are multiplied by the unpacked weight:
    correct, and slow.

    Args:
        matrix: the packed weight ``(out, in)``. Layers that share a weight share its memory.
        bias: ``(out,)`` or None.
        ways: number of tokens of `TOKENS` -> name in `WAYS`; one that is missing is ``unpack``.
        looked: the same weight in blocks, where one of the ways is ``look``; it is made anew of what is loaded.
    """

    only_computes = "mf.sparse_runtime"
    bits: Tensor
    starts: Tensor
    values: Tensor
    scales: Tensor | None
    bias: nn.Parameter | None
    kind: torch.dtype
    _given: Arguments
    _looks: LookedArguments

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_given", "_looks")
        return {name: value for name, value in self.__dict__.items() if name not in left_out} | {"_known": ()}

    def __init__(
        self,
        matrix: PackedMatrix,
        bias: nn.Parameter | None,
        ways: Mapping[int, str],
        looked: LookedMatrix | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.cols, matrix.rows
        self.ways = dict(ways)
        self.kind = matrix.values.dtype
        self.register_buffer("bits", matrix.bits)
        self.register_buffer("starts", matrix.starts)
        self.register_buffer("values", matrix.values.view(STORED_AS[self.kind]))
        self.register_buffer("scales", None if matrix.scales is None else matrix.scales.view(torch.int32))
        self.register_parameter("bias", bias)
        self._take(looked)
        self._known: tuple[int, ...] = ()

    @property
    def matrix(self) -> PackedMatrix:
        """The packed weight."""
        scales = None if self.scales is None else self.scales.view(torch.float32)
        return PackedMatrix(
            self.out_features, self.in_features, self.bits, self.starts, self.values.view(self.kind), scales
        )

    @property
    def weight(self) -> Tensor:
        """The weight unpacked, ``(out, in)``, in the dtype of the bias or of the values; made anew at each look."""
        dtype = torch.float32 if self.kind == torch.int8 else self.kind
        return unpacked(self.matrix).to(dtype if self.bias is None else self.bias.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply ``(..., in)``; the result has the dtype of the inputs, or the one that autocast asks for."""
        bias = self._parameters["bias"]
        found = self._kernels(inputs, bias)
        if found is None:
            return F.linear(inputs, unpacked(self.matrix).to(inputs.dtype), bias)
        cols = self.in_features
        if inputs.shape[-1:] != (cols,):
            raise RuntimeError(f"inputs {tuple(inputs.shape)} do not end in the {cols} inputs of the layer")
        tokens = inputs.numel() // cols if cols else math.prod(inputs.shape[:-1])
        if not tokens:
            out = inputs.new_zeros(*inputs.shape[:-1], self.out_features)
        else:
            way = self.ways.get(nearest(tokens), "unpack")
            given: Arguments | LookedArguments = self._arguments()
            out = multiply(way, self._looks if way == "look" else given, inputs, bias, found)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
        return out if out.dtype == dtype else out.to(dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load packed tensors; a dense weight in their place is an error of one sentence rather than missing keys."""
        errors: list[str] = rest[-1]
        if f"{prefix}weight" in state_dict and f"{prefix}bits" not in state_dict:
            errors.append(
                f"'{prefix}weight' is dense, and this layer is packed; load it into the dense model, and make "
                "mf.sparse_runtime of that"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.steps:
            self._take(kernels().looked(self.matrix))
            self._known = ()

    def extra_repr(self) -> str:
        """Say the sizes, the share of zeros and the kernels, for ``print(model)``."""
        kept = len(self.values) - 64 // self.values.element_size()
        zeros = 1 - kept / max(self.in_features * self.out_features, 1)
        ways = ", ".join(f"{tokens}: {way}" for tokens, way in self.ways.items())
        return f"{self.in_features}, {self.out_features}, {zeros:.0%} zeros, {self.kind}, {{{ways}}}"

    def _take(self, looked: LookedMatrix | None) -> None:
        """Hold blocks; states leave them out."""
        self.steps = looked.steps if looked else 0
        for name in BLOCKS:
            self.register_buffer(f"look_{name}", getattr(looked, name) if looked else None, persistent=False)

    def _arguments(self) -> Arguments:
        """Say what the kernels are given, anew only when a tensor has moved."""
        there = self._buffers
        bits, starts, values, scales = there["bits"], there["starts"], there["values"], there["scales"]
        scaled = 0 if scales is None else scales.data_ptr()
        addresses = (bits.data_ptr(), starts.data_ptr(), values.data_ptr(), scaled)  # type: ignore[union-attr]
        if addresses != self._known:
            self._known, self._given = addresses, self.matrix.arguments
            if self.steps:
                fields: dict[str, Any] = {name: there[f"look_{name}"] for name in BLOCKS}
                fields |= {"rows": self.out_features, "cols": self.in_features, "steps": self.steps}
                self._looks = LookedMatrix(**fields, scales=scales.view(torch.float32)).arguments  # type: ignore[union-attr]
        return self._given

    def _kernels(self, inputs: Tensor, bias: Tensor | None) -> Kernels | None:
        if not inputs.is_cpu or not inputs.is_floating_point() or not self._buffers["bits"].is_cpu:  # type: ignore[union-attr]
            return None
        if torch.jit.is_tracing():
            raise MultiflowError(
                "the sparse runtime cannot be traced; trace or export the model with its masks applied"
            )
        if type(inputs) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(inputs):
            return None  # without memory of its own
        if torch.is_grad_enabled() and (inputs.requires_grad or (bias is not None and bias.requires_grad)):
            return None
        try:
            return kernels()
        except NoKernelsError:
            return None


class FewLinear(nn.Module):
    """A dense linear layer that takes its weights from a packed copy, in fewer bytes, where tokens are few.

    Args:
        linear: the layer; its weight stays, which may be another layer's as well.
        few: the same weight packed, with the same bias.
        most: number of tokens up to which the packed one is faster.
    """

    only_computes = "mf.sparse_runtime"

    def __init__(self, linear: nn.Linear, few: SparseLinear, most: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.few, self.most = few, most

    def forward(self, inputs: Tensor) -> Tensor:
        """Multiply ``(..., in)``."""
        if inputs.numel() <= self.most * self.in_features and not torch.is_grad_enabled():
            return self.few(inputs)
        return F.linear(inputs, self.weight, self.bias)


def nearest(tokens: int) -> int:
    """Return the number of `TOKENS` to which a number of tokens is nearest.

    >>> nearest(1), nearest(3), nearest(30), nearest(10_000)
    (1, 8, 64, 256)
    """
    return TOKENS[bisect_left(BETWEEN, tokens)]


def ways_of(kind: torch.dtype, cols: int) -> tuple[str, ...]:
    """Return what can multiply a matrix of values of this kind."""
    if kind == torch.int8:
        return ("few8", "walk", "unpack") if cols <= MOST_COLUMNS else ("few", "walk", "unpack")
    return ("few", "walk", "unpack", "unpack-bf16") if kind == torch.bfloat16 else ("few", "walk", "unpack")


def multiply(
    way: str,
    packed: Arguments | LookedArguments,
    inputs: Tensor,
    bias: Tensor | None,
    native: Kernels | None = None,
) -> Tensor:
    """Multiply inputs ``(..., in)`` by the transposed matrix in one of `WAYS`, on the CPU without gradients.

    ``few`` and ``walk`` compute in float32, ``few8`` and ``look`` round the inputs to 8 bits, ``unpack`` is torch's
    product in float32, and ``unpack-bf16`` its product in bfloat16, to which it rounds the inputs.

    Args:
        way: how.
        packed: the arguments of the matrix, for ``look`` those of its blocks.
        inputs: of any floating point dtype.
        bias: ``(out,)`` or None.
        native: the kernels; None = those of this processor.

    Returns:
        ``(..., out)`` in float32, for ``unpack-bf16`` bfloat16.
    """
    native = native or kernels()
    if isinstance(packed, LookedArguments):
        return native.product(way, packed, _plain(inputs), None if bias is None else _plain(bias))
    if way == "unpack-bf16":
        dense = native.unpack(packed, halves=True)
        return F.linear(inputs.bfloat16(), dense, None if bias is None else bias.bfloat16())
    flat, added = _plain(inputs), None if bias is None else _plain(bias)
    if way == "unpack":
        return F.linear(flat, native.unpack(packed), added)
    return native.product(way, packed, flat, added)


def _plain(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.detach().float().contiguous()


def unpacked(matrix: PackedMatrix) -> Tensor:
    """Return the dense matrix in float32, by torch alone, on the device of the values."""
    places = torch.arange(8, dtype=torch.uint8, device=matrix.bits.device)
    bits = (matrix.bits.flatten().view(torch.uint8)[:, None] >> places) & 1
    kept = bits.view(matrix.rows, 64 * matrix.bits.shape[1])[:, : matrix.cols].bool()
    dense = torch.zeros(matrix.rows, matrix.cols, device=matrix.values.device)
    dense[kept] = matrix.values[: len(matrix.values) - 64 // matrix.values.element_size()].float()
    return dense if matrix.scales is None else dense * matrix.scales[:, None]
