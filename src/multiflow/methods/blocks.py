"""Budgets of other papers, each with exact totals and usable with every pruner that ranks inside layers.

A block is what stands under one number in a module path, ``vision.layers.3``; a layer under none is a block of its own.
With s the sparsity, D_b a number for each block b, and ``spread(D, w)`` the linear map of all to [0, w]:

    owl      kept share = spread(D, 2 * 0.08) + constant,    D = share of |W| a above 5 times their mean in the block
    dlp      kept share = spread(D, 2 * 0.15) + constant,    D = 1 - m_b / sum m,    m = median of |W| a in the block
    alpha    dropped share = factor * (1 - tau + spread(D, 2 tau)),    D = Hill exponent of each layer's W'W, tau = 0.3
    atp      dropped share = s + step * (b - (L - 1) / 2),    b counted from 0 in each modality group of L blocks
    ecoflap  kept share proportional to D, the mean |loss(W + e z) - loss(W - e z)| / 2e; none drops above s + 0.1

OWL: Yin et al., arXiv 2310.05175. DLP: Chen et al., arXiv 2505.23807. AlphaPruning: Lu et al., arXiv 2410.10912; the
exponent is ``1 + n / sum log(l_i / l_min)`` over the upper half of the n eigenvalues. ATP: Huang et al., arXiv
2502.14770. ECoFLaP: Sung et al., arXiv 2310.02998. a is the root mean square of the inputs.

Differences from the published code: the constant, or factor, is the one at which exactly ``round(s n)`` weights go;
theirs centre the plain mean over blocks, which is s only for blocks of one size. Shares outside [0, 1] are cut, and
what is left after rounding goes by largest remainder. DLP's median is a median on every path. ATP begins anew in every
tower of a model with several, because errors add up along each, and its step is not searched: 0.1 from the first block
to the last. ECoFLaP shakes weights by noise z and runs the model twice for each; here D is what that comes to in the
mean for small noise, ``sqrt(2 / pi)`` times the norm of the block's gradient. Per row, budgets are rounded to the same
number in every row of a layer, the total to the nearest that this allows; N:M fixes them all, and is refused together
with an allocation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.types import Budget, Layer, Layout
from multiflow.methods.budgets import Tensors, allocation

BISECTIONS = 200


def block_of(name: str) -> str:
    """Return the block of a layer: its path up to the first number.

    >>> block_of("vision.layers.3.mlp.fc1")
    'vision.layers.3'
    """
    found = re.match(r".*?\.\d+(?=\.|$)", name)
    return found[0] if found else name


def blocks(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Put layers together by block, in their order."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(block_of(layer.name), []).append(layer)
    return found


def spread(values: Mapping[str, float], width: float) -> dict[str, float]:
    """Scale numbers linearly to ``[0, width]``; equal ones are 0."""
    low, high = min(values.values()), max(values.values())
    return {name: width * (value - low) / (high - low) if high > low else 0.0 for name, value in values.items()}


def centred(layout: Layout, sparsity: float, kept: Mapping[str, float], most: float = 1.0) -> Budget:
    """Make a budget of the shares that blocks keep, up to one constant.

    Args:
        layout: the layers.
        sparsity: of all of them together.
        kept: block -> share.
        most: the largest sparsity of a layer.
    """
    return to_budget(layout, sparsity, {layer.name: -kept[block_of(layer.name)] for layer in layout.layers}, most)


def to_budget(layout: Layout, sparsity: float, dropped: Mapping[str, float], most: float = 1.0) -> Budget:
    """Move the shares that layers drop by one constant, inside [0, most], until exactly ``round(s n)`` weights go."""
    total = round(sparsity * layout.size)
    most = max(most, sparsity)

    def at(shift: float) -> dict[str, float]:
        return {x.name: x.size * min(max(dropped[x.name] + shift, 0.0), most) for x in layout.layers}

    low, high = -max(dropped.values()), most - min(dropped.values())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle).values()) < total else (low, middle)
    return whole(layout, total, at(high))


def whole(layout: Layout, total: int, wished: Mapping[str, float]) -> Budget:
    """Round wishes to whole numbers with a given sum, by largest remainder, no layer above its size."""
    counts = {x.name: min(int(wished[x.name]), x.size) for x in layout.layers}
    order = sorted(layout, key=lambda name: counts[name] - wished[name])
    short = total - sum(counts.values())
    while short:
        for name in order if short > 0 else reversed(order):
            room = counts[name] < layout[name].size if short > 0 else counts[name] > 0
            if short and room:
                counts[name] += 1 if short > 0 else -1
                short -= 1 if short > 0 else -1
    return Budget(counts)


def signals(layers: Iterable[Layer], weights: Tensors, input_norm: Tensors) -> Tensor:
    """Return ``|W| a`` of all weights of some layers, in a row."""
    return torch.cat([(weights[x.name].abs() * input_norm[x.name].to(weights[x.name])).flatten() for x in layers])


def outlier_shares(layout: Layout, weights: Tensors, input_norm: Tensors, above: float = 5.0) -> dict[str, float]:
    """Share of each block's ``|W| a`` above so many times their mean in the block."""
    shares = {}
    for name, layers in blocks(layout.layers).items():
        scores = signals(layers, weights, input_norm)
        shares[name] = float((scores > above * scores.mean(dtype=torch.float64)).double().mean())
    return shares


def medians(layout: Layout, weights: Tensors, input_norm: Tensors) -> dict[str, float]:
    """Median of each block's ``|W| a``."""
    return {
        name: float(signals(layers, weights, input_norm).median()) for name, layers in blocks(layout.layers).items()
    }


def hill(weight: Tensor) -> float:
    """The exponent of the tail of a weight's squared singular values: the heavier the tail, the smaller."""
    values = torch.linalg.svdvals(weight.double()).square().sort().values
    least = values[(len(values) - 1) // 2].clamp(min=torch.finfo(values.dtype).tiny)
    upper = values[(len(values) - 1) // 2 :]
    spread_of = float((upper / least).log().sum())
    return 1 + len(upper) / spread_of if spread_of > 0 else math.inf


@allocation("owl")
def owl(
    layout: Layout,
    sparsities: Sequence[float],
    weights: Tensors,
    *,
    input_norm: Tensors,
    above: float = 5.0,
    width: float = 0.08,
) -> list[Budget]:
    """Blocks with more outliers among ``|W| a`` keep more (OWL)."""
    kept = spread(outlier_shares(layout, weights, input_norm, above), 2 * width)
    return [centred(layout, s, kept) for s in sparsities]


@allocation("dlp")
def dlp(
    layout: Layout, sparsities: Sequence[float], weights: Tensors, *, input_norm: Tensors, width: float = 0.15
) -> list[Budget]:
    """Blocks whose median ``|W| a`` is small keep more (DLP)."""
    found = medians(layout, weights, input_norm)
    total = sum(found.values()) or 1.0
    kept = spread({name: 1 - value / total for name, value in found.items()}, 2 * width)
    return [centred(layout, s, kept) for s in sparsities]


@allocation("alpha")
def alpha(layout: Layout, sparsities: Sequence[float], weights: Tensors, *, tau: float = 0.3) -> list[Budget]:
    """Layers whose spectrum has a light tail, the less trained ones, lose more (AlphaPruning)."""
    found = {name: hill(weights[name]) for name in layout}
    finite = [value for value in found.values() if value < math.inf]
    found = {name: min(value, max(finite, default=1.0)) for name, value in found.items()}
    share = {name: 1 - tau + value for name, value in spread(found, 2 * tau).items()}
    return [_scaled(layout, s, share) for s in sparsities]


@allocation("atp")
def atp(layout: Layout, sparsities: Sequence[float], *, step: float | None = None) -> list[Budget]:
    """Later blocks lose more, in equal steps, 0.1 from the first to the last (ATP)."""
    place: dict[str, float] = {}
    for layers in layout.groups.values():
        parts = list(blocks(layers).values())
        by = step if step is not None else 0.1 / max(1, len(parts) - 1)
        for number, part in enumerate(parts):
            place.update({x.name: by * (number - (len(parts) - 1) / 2) for x in part})
    return [to_budget(layout, s, place) for s in sparsities]


@allocation("ecoflap")
def ecoflap(layout: Layout, sparsities: Sequence[float], *, gradient: Tensors, cap: float = 0.1) -> list[Budget]:
    """Blocks whose loss moves more when their weights are shaken keep more; none loses above s + cap (ECoFLaP)."""
    worth = {
        name: math.sqrt(2 / math.pi * sum(float(gradient[x.name].double().square().sum()) for x in layers))
        for name, layers in blocks(layout.layers).items()
    }
    if not 0 < sum(worth.values()) < math.inf:
        raise MultiflowError(
            "allocation 'ecoflap' finds no gradient of the loss in any layer; check that the loss of the batches "
            "depends on the weights and is finite"
        )
    return [_proportional(layout, s, worth, min(1.0, s + cap)) for s in sparsities]


def _scaled(layout: Layout, sparsity: float, share: Mapping[str, float]) -> Budget:
    """Give each layer the same factor times its share, at most all, such that exactly ``round(s n)`` weights go."""
    total, low, high = round(sparsity * layout.size), 0.0, 1.0 / min(share.values())

    def at(factor: float) -> dict[str, float]:
        return {x.name: x.size * min(1.0, factor * share[x.name]) for x in layout.layers}

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle).values()) < total else (low, middle)
    return whole(layout, total, at(high))


def _proportional(layout: Layout, sparsity: float, worth: Mapping[str, float], most: float) -> Budget:
    """Keep in proportion to what a block is worth, at least ``1 - most`` and at most all of it."""
    by_layer: dict[str, tuple[Layer, float]] = {
        x.name: (x, worth[block]) for block, layers in blocks(layout.layers).items() for x in layers
    }
    total, low, high = round(sparsity * layout.size), 0.0, 1.0 / min((v for v in worth.values() if v > 0), default=1.0)

    def at(factor: float) -> dict[str, float]:
        return {name: x.size * (1 - min(1.0, max(1 - most, factor * v))) for name, (x, v) in by_layer.items()}

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(at(middle).values()) < total else (middle, high)
    return whole(layout, total, at(low))
