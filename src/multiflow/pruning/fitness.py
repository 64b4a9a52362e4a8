"""How good budgets are: the model is pruned to them, layer by layer, and compared with the dense one on a few pairs.

Layers are pruned once at each level that a search comes to, and kept: a database from which models are put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from multiflow.base.adapter import parts
from multiflow.base.errors import MultiflowError
from multiflow.base.registry import resolve
from multiflow.base.types import Budget, PerRow, put_weights
from multiflow.calibration import Checkpoint, evaluating, iterate, to_device, weights_replaced
from multiflow.calibration.batches import check_some
from multiflow.methods.budgets import fit_budget
from multiflow.pruning.plan import PruningPlan
from multiflow.pruning.result import short

PAIRS = 128
"""Samples on which budgets are judged; as many batches as hold them."""
LayerAt = Callable[[str, int], Tensor]
"""``f(layer, count) -> its weight (out, in)`` with so many zeros."""


class BudgetFitness:
    """The distillation loss of the model at some budgets, see `multiflow.methods.search`.

    Args:
        plan: what is pruned.
        layer_at: prunes a layer.
    """

    def __init__(self, plan: PruningPlan, layer_at: LayerAt, identity: Mapping[str, Any]) -> None:
        plan.weights.check(in_memory=f"allocation '{plan.request.allocation.name}'")
        self._plan, self._layer_at, self._identity = plan, layer_at, identity
        self._made: dict[tuple[str, int], Tensor] = {}
        self._comparison = resolve("multiflow.recovery.distill:DenseView")  # lies above: found by name
        self._batches = list(self._pieces())
        check_some(len(self._batches), 0)
        self._seen: list[Any] = []
        self._blocks: dict[str, str] = {}

    @property
    def seed(self) -> int:
        """Of the random numbers."""
        return self._plan.seed

    def __call__(self, budget: Budget, *, whole: bool) -> float:
        """Return the loss of the model pruned to these budgets, on all batches or on the first."""
        plan = self._plan
        with torch.no_grad(), evaluating(plan.model):
            if not self._seen:
                blocks = resolve("multiflow.recovery.parts:find_blocks")
                self._blocks = blocks(plan.model, plan.layout, lambda: self._run(self._batches[0]))
                self._seen = [self._compare(batch) for batch in self._batches]
            if isinstance(plan.request.pattern, PerRow):
                budget = fit_budget(budget, plan.layout)
            pruned = {name: self._layer(name, budget[name]) for name in plan.layout}
            with weights_replaced(plan.weights.parameters):
                put_weights(plan.weights.parameters, lambda name: pruned[name].to(plan.weights.device(name)))
                number = len(self._batches) if whole else 1
                losses = [self._seen[n].loss(plan.model) for n in range(number)]
        known = [float(loss) for loss in losses if loss is not None]
        if not known:
            raise MultiflowError(
                "the model gives nothing that can be compared with the dense one: no block and no output is a tensor "
                "of numbers; pass an Adapter(outputs=...)"
            )
        return math.fsum(known) / len(known)

    def load(self, sparsity: float) -> tuple[int, dict[str, int], float] | None:
        """Return the generations done, the best levels and their loss, of a search that was ended."""
        if (place := self._place(sparsity)) is None:
            return None
        like = {
            "levels": torch.zeros(len(self._plan.layout), dtype=torch.int64),
            "loss": torch.zeros((), dtype=torch.float64),
        }
        if (saved := place.load_state(self._identity, like)) is None:
            return None
        tensors, facts = saved
        return (
            facts["generation"],
            dict(zip(self._plan.layout, tensors["levels"].tolist(), strict=True)),
            float(tensors["loss"]),
        )

    def save(self, sparsity: float, generation: int, of: int, levels: Mapping[str, int], loss: float) -> None:
        """Note where the search stands, and tell of it."""
        if (place := self._place(sparsity)) is not None:
            tensors = {
                "levels": torch.tensor([levels[name] for name in self._plan.layout]),
                "loss": torch.tensor(loss, dtype=torch.float64),
            }
            place.save_state(tensors, self._identity, {"generation": generation})
        if tell := self._plan.progress_of(sparsity):
            tell("search", generation, of)

    def forget(self) -> None:
        """Delete what a search that was ended would go on from."""
        for sparsity in self._plan.sparsities:
            if place := self._place(sparsity):
                place.delete()

    def _place(self, sparsity: float) -> Checkpoint | None:
        return self._plan.checkpoint and self._plan.checkpoint.part(f"search-{short(sparsity)}")

    def _layer(self, name: str, count: int) -> Tensor:
        if (name, count) not in self._made:
            self._made[name, count] = self._layer_at(name, count)
        return self._made[name, count]

    def _pieces(self) -> Iterator[Any]:
        """The parts of the first batches, as many as hold `PAIRS` samples."""
        count = 0
        device = next(iter(self._plan.weights.parameters.values())).device
        for batch in iterate(self._plan.batches):
            for part in parts(batch):
                yield to_device(part, device)
                tensors = (
                    part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else [part]
                )
                count += max((len(x) for x in tensors if isinstance(x, Tensor) and x.dim()), default=1)
            if count >= PAIRS:
                return

    def _run(self, batch: Any) -> Any:
        adapter = self._plan.adapter
        return (adapter.outputs or adapter.forward)(self._plan.model, batch)

    def _compare(self, batch: Any) -> Any:
        return self._comparison(self._plan.model, self._plan.adapter, self._blocks, batch)
