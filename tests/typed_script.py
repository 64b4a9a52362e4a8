"""The script of a user, as ``mypy --strict`` must pass it; ``make check`` looks, nothing runs it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import multiflow as mf


@mf.scorer
def halves(weight: Tensor, *, input_norm: Tensor, power: float = 0.5) -> Tensor:
    """Magnitude times a power of the inputs."""
    return weight.abs() * input_norm**power


def shrink(model: nn.Module, folder: str) -> float:
    """Prune a model, train it for a step, and say how sparse it is."""
    adapter: mf.Adapter = mf.adapter_for(model)
    batches = mf.calibration_batches(model, folder)
    result: mf.Result = mf.prune(model, "wanda", sparsity=[0.5, 0.75], batches=batches, adapter=adapter)
    masks: mf.Masks = result.masks[0.5]
    kept: Tensor = masks[next(iter(masks))]
    shares: dict[str, float] = masks.group_sparsities()
    result.apply_(model, 0.5)
    optimizer = torch.optim.AdamW(model.parameters())
    with mf.keep_sparse(model, masks, optimizer):
        optimizer.step()
    settings: Mapping[str, object] = result.settings
    print(kept.shape, shares, settings, mf.list_pruners()["wanda"], mf.PRUNERS["wanda"].kind)
    return masks.sparsity


if __name__ == "__main__":
    print(shrink(mf.load_model("xvlm-shapes"), "data"))
