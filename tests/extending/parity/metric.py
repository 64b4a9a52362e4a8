from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from multiflow.metrics import Figures


def accuracy_of_each(
    classify: Callable[..., Figures], names: Sequence[str], model: Any, tokenizer: Any, data: Any, **options: Any
) -> Figures:
    """Share of right answers among the images of each name, in percent, and the mean of these shares."""
    found = classify(model, tokenizer, data, **options)
    right = {name: [x for x, (of,) in zip(found.each, data.texts, strict=True) if of == name] for name in names}
    shares = {name: fmean(several) for name, several in right.items()}
    return Figures({"mean of even and odd": fmean(shares.values()), **shares}, found.each)
