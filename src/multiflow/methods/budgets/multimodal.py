"""The multimodal distribution of MULTIFLOW (arXiv 2404.05621, section 4.3).

Magnitude pruning at sparsity s, apart in every modality group: the number of weights that each layer loses is its
budget. Data-free; every group ends at exactly ``round(s * n_group)``, so that no modality can collapse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.types import Budget, Layout
from multiflow.methods.budgets.base import Tensors, allocation
from multiflow.methods.budgets.global_ import drop_smallest


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
def multimodal(layout: Layout, sparsities: Sequence[float], weights: Tensors, scores: Tensors) -> list[Budget]:
    """Let every layer lose what magnitude pruning inside its modality group takes from it."""
    by_group = [drop_smallest(layers, sparsities, _Magnitudes(weights)) for layers in layout.groups.values()]
    merged = [{name: count for budget in at for name, count in budget.items()} for at in zip(*by_group, strict=True)]
    return [Budget({name: budget[name] for name in layout}) for budget in merged]
