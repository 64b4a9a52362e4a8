"""A pruner from outside: a score, the same in steps, and an allocation that looks at a statistic."""

from __future__ import annotations

import multiflow as mf


@mf.scorer(allocation="uniform")
def norm_power(weight, *, input_norm, power=0.5):
    """Magnitude times a power of the input's norm."""
    return weight.abs() * input_norm**power


mf.variant("iter_norm_power", "norm_power", "Norm power in steps.", stepwise=True, hyper={"steps": 2})


def quiet_first(layout, sparsity, *, input_norm):
    """Drop more where the inputs are small, exactly as much in all."""
    norms = {name: float(values.mean()) for name, values in input_norm.items()}
    order = sorted(layout, key=norms.get)
    left = round(sparsity * layout.size)
    budget = {}
    for name in order:
        budget[name] = min(left, layout[name].size)
        left -= budget[name]
    return budget
