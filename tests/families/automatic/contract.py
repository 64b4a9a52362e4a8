"""What holds for every model that the automatic adapter takes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import multiflow as mf
from multiflow.base.adapter import Adapter, lay_mask

METHODS = ("multiflow", "wanda", "magnitude", "lobs", "snip")


def check_pruning(model: Any, adapter: Adapter, batches: list[Any], folder: Path) -> None:
    """Prune with five methods, save, load, and train two steps: exact counts, the same zeros, an unchanged model."""
    layout, before = adapter.layout(model), {name: value.clone() for name, value in model.state_dict().items()}
    for method in METHODS:
        if method == "snip" and adapter.loss is None:
            continue
        result = mf.prune(model, method, 0.5, batches, adapter=adapter)
        masks = result.masks[0.5]
        if method == "wanda":  # every row drops its half
            dropped = {name: layer.shape[0] * round(0.5 * layer.shape[1]) for name, layer in layout.items()}
            assert {name: masks.dropped(name) for name in masks} == dropped
        else:
            assert sum(masks.dropped(name) for name in masks) == round(0.5 * layout.size)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    masks.apply_(model)
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    assert masks.is_applied(again)
    for name, weights in masks.find_weights(model).items():
        assert all(map(torch.equal, weights, masks.find_weights(again)[name]))
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2)
    with mf.keep_sparse(again, masks, optimizer) as check:
        for batch in batches[:2]:
            out = adapter.loss(again, batch) if adapter.loss else first_tensor(again(**batch)).sum()
            out.backward()
            optimizer.step()
            optimizer.zero_grad()
        check()


def first_tensor(out: Any) -> Tensor:
    """Return the first tensor with a gradient of a model's output."""
    return next(value for value in out.values() if isinstance(value, Tensor) and value.requires_grad)


def layer_inputs(model: nn.Module, adapter: Adapter, batch: Any) -> dict[str, list[Tensor]]:
    """Return every input of every layer in one forward, in float64: brute force, nothing summed."""
    found: dict[str, list[Tensor]] = {name: [] for name in adapter.layout(model)}
    with ExitStack() as stack, torch.no_grad():
        for name, inputs in found.items():

            def keep(_: Any, args: Any, kwargs: Any, inputs: list[Tensor] = inputs) -> None:
                inputs.append((args[0] if args else kwargs["input"]).detach().double())

            hook = model.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(hook.remove)
        torch.manual_seed(0)
        adapter.forward(model, batch)
    return found


def real_tokens(adapter: Adapter, batch: Any, name: str, value: Tensor) -> Tensor:
    """Return which tokens of a layer's input the adapter takes as real, (..., ) without the last dimension."""
    stream = adapter.stream(name)
    masks = adapter.token_masks(batch) if adapter.token_masks else {}
    mask = lay_mask(masks[stream], name, value) if stream else None
    return torch.ones(value.shape[:-1], dtype=torch.bool) if mask is None else mask.bool().reshape(value.shape[:-1])


def moved_tokens(model: nn.Module, adapter: Adapter, batch: Any, other: Any) -> dict[str, list[Tensor]]:
    """Return, of each input of each layer, which tokens differ between two batches, as bool ``(...)``."""
    one, two = layer_inputs(model, adapter, batch), layer_inputs(model, adapter, other)
    return {
        name: [((a - b).abs() > 1e-6 * a.abs().amax()).any(-1) for a, b in zip(one[name], two[name], strict=True)]
        for name in one
    }


def with_other_padding(batch: Mapping[str, Tensor], seed: int = 3) -> dict[str, Tensor]:
    """Return a batch that differs only in what its masks call padding: token ids and pixels."""
    generator, other = torch.Generator().manual_seed(seed), dict(batch)
    if "input_ids" in batch and "attention_mask" in batch:
        words = torch.randint(3, 100, batch["input_ids"].shape, generator=generator)
        other["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], words)
    if "pixel_attention_mask" in batch:
        pixels, mask = batch["pixel_values"], batch["pixel_attention_mask"].bool()
        mask = mask[:, :, None] if mask.dim() == 4 else mask[..., None]
        other["pixel_values"] = torch.where(mask, pixels, torch.rand(pixels.shape, generator=generator) + 0.1)
    return other
