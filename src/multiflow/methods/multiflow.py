"""MULTIFLOW: multimodal flow pruning (Farina et al., CVPR 2024, arXiv 2404.05621, section 4).

A linear layer is a bipartite graph whose edges are its weights. The importance of a neuron is the mean signal on its
edges, the importance of a weight that of the path through it:

    I_out[i] = mean over j of |W_ij| a_j
    I_in[j]  = a_j * mean over i of |W_ij|
    score_ij = I_out[i] * |W_ij| * I_in[j],    a_j = root mean square of input feature j

The multimodal distribution says how many weights each layer drops (section 4.3): as many as magnitude pruning at that
sparsity takes from it inside its modality group. It needs no data, and every group ends at exactly
``round(s * n_group)``, so that no modality can collapse.

Differences from the published code: statistics stream instead of being stored, a shared weight sums the inputs of all
its users, padded tokens are left out by declaration, and the calibration serves every sparsity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.types import Budget, Layout
from multiflow.methods.budgets import Tensors, allocation, drop_smallest
from multiflow.methods.declare import scorer


@scorer("multiflow", allocation="multimodal")
def multiflow(weight: Float[Tensor, "out in"], *, input_norm: Float[Tensor, " in"]) -> Float[Tensor, "out in"]:
    """Magnitude times the information flow through both neurons it connects; multimodal distribution."""
    magnitude = weight.abs()
    flow_out = (magnitude @ input_norm).div_(magnitude.shape[1])
    flow_in = magnitude.mean(0).mul_(input_norm)
    return magnitude.mul_(flow_out[:, None]).mul_(flow_in)


class _Magnitudes(Mapping[str, Tensor]):
    """The absolute weights, computed when looked up."""

    def __init__(self, weights: Tensors) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        magnitude = self._weights[name].abs()
        if not magnitude.sum().isfinite() and not magnitude.isfinite().all():
            raise MultiflowError(f"the weight of layer '{name}' holds NaN or Inf; load the model anew, or repair it")
        return magnitude

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@allocation("multimodal")
def multimodal(layout: Layout, sparsities: Sequence[float], *, weights: Tensors) -> list[Budget]:
    """Let every layer lose what magnitude pruning inside its modality group takes from it.

    Data-free; every group ends at exactly ``round(s * n_group)``, so that no modality can collapse.
    """
    by_group = [drop_smallest(layers, sparsities, _Magnitudes(weights)) for layers in layout.groups.values()]
    merged = [{name: count for budget in at for name, count in budget.items()} for at in zip(*by_group, strict=True)]
    return [Budget({name: budget[name] for name in layout}) for budget in merged]
