"""How close a sparse model stays to the dense one, on data without labels: block by block, and in its answers.

    error of a block   = sum |y_sparse - y_dense|^2 / sum |y_dense|^2, over the real tokens of its outputs y
    answers that stay  = share of the dense model's answers that the sparse one gives too

An answer is whatever a model says last: the text that is nearest to an image and the image that is nearest to a text,
among all of the data, or the most likely next token or class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.adapter import Adapter, call
from multiflow.base.errors import MultiflowError
from multiflow.base.guards import exclusively
from multiflow.base.types import Layout
from multiflow.calibration import buffers_restored, evaluating, to_device
from multiflow.calibration.batches import iterate
from multiflow.masks import Masks
from multiflow.pruning.plan import find_adapter

FEATURES = (("image_feat", "text_feat"), ("image_embeds", "text_embeds"))
"""Names of outputs (B, D) that are compared with one another."""
LOGITS = ("decoder_logits", "logits")
"""Names of outputs whose largest entry is the answer: (B, classes), or (B, L, vocabulary)."""
IGNORED = -100  # label of a token that is no answer

Change = Callable[[], object]


@dataclass(frozen=True)
class Fidelity:
    """How close one sparse model stays to the dense one."""

    blocks: Mapping[str, float]  # path of a block, in module order -> relative squared error of its output
    groups: Mapping[str, float]  # group -> mean error of the blocks that hold layers of it
    answers: Mapping[str, float]  # kind of answer, such as "image to text" -> share that stays
    compared: Mapping[str, int]  # kind of answer -> how many were compared

    @property
    def loyalty(self) -> float | None:
        """Mean share of answers that stay; None for a model whose outputs say no answer."""
        return sum(self.answers.values()) / len(self.answers) if self.answers else None


def blocks_of(layout: Layout) -> dict[str, str]:
    """Return the block of every layer: the innermost numbered module that holds several, or the layer itself.

    >>> from multiflow.base.types import Layer
    >>> blocks_of(Layout((Layer("h.0.attn.q", (2, 2), "text"), Layer("h.0.mlp.0", (2, 2), "text"))))
    {'h.0.attn.q': 'h.0', 'h.0.mlp.0': 'h.0'}
    """
    numbered = {name: [name[: at.end()] for at in re.finditer(r"(?:^|\.)\d+(?=\.|$)", name)] for name in layout}
    held: dict[str, int] = {}
    for places in numbered.values():
        for place in places:
            held[place] = held.get(place, 0) + 1
    return {name: next((p for p in reversed(places) if held[p] > 1), name) for name, places in numbered.items()}


@exclusively("comparing")
def measure_fidelity(
    model: nn.Module,
    variants: Sequence[tuple[Masks, Mapping[str, Tensor] | None]],
    batches: Iterable[Any],
    adapter: Adapter | None = None,
) -> list[Fidelity]:
    """Compare sparse variants of a model with the dense one, in one pass over the batches.

    Args:
        model: the dense one; it is as it was afterwards. A copy of its prunable weights is held meanwhile.
        variants: masks, and the weights that the method has changed or None.
        batches: as for `prune`, better others than those.
        adapter: how to run the model; needed for models of no known family.

    Returns:
        One `Fidelity` a variant, in their order.

    Raises:
        MultiflowError: no batches, or masks of another model.
    """
    adapter = find_adapter(model, adapter)
    layout = adapter.layout(model)
    blocks = blocks_of(layout)
    modules = dict(model.named_modules(remove_duplicate=False))
    watched = {path: modules[path] for path in dict.fromkeys(blocks.values()) if path in modules}
    weights = {name: of for masks, _ in variants[:1] for name, of in masks.find_weights(model).items()}
    dense = {name: [weight.detach().clone() for weight in of] for name, of in weights.items()}
    device = next(iter(next(iter(weights.values())))).device if weights else torch.device("cpu")
    sums = [dict.fromkeys(blocks.values(), (0.0, 0.0)) for _ in variants]
    said: list[list[dict[str, Tensor]]] = [[] for _ in range(len(variants) + 1)]
    seen = 0
    with torch.no_grad(), evaluating(model), buffers_restored(model):
        for batch in iterate(batches):
            moved = to_device(batch, device)
            real = adapter.token_masks(moved) if adapter.token_masks else {}
            there: dict[str, Tensor] = {}
            said[0].append(_run(model, moved, adapter, there, watched))
            for number, (masks, changed) in enumerate(variants):
                found: dict[str, Tensor] = {}
                with _sparse(weights, dense, masks, changed):
                    said[number + 1].append(_run(model, moved, adapter, found, watched))
                for block, value in found.items():
                    if block in there and there[block].shape == value.shape:
                        wrong, size = _squares(value, there[block], real)
                        before = sums[number][block]
                        sums[number][block] = (before[0] + wrong, before[1] + size)
            seen += 1
    if not seen:
        raise MultiflowError("there are no batches to compare on; give some")
    expected = _answers(said[0])
    return [
        _fidelity(layout, blocks, of, expected, _answers(outputs)) for of, outputs in zip(sums, said[1:], strict=True)
    ]


@contextmanager
def _sparse(
    weights: Mapping[str, Sequence[Tensor]],
    dense: Mapping[str, Sequence[Tensor]],
    masks: Masks,
    changed: Mapping[str, Tensor] | None,
) -> Iterator[None]:
    try:
        for name, of in weights.items():
            kept = masks[name]
            for weight in of:
                if changed is not None:
                    weight.copy_(changed[name])
                weight.masked_fill_(~kept.to(weight.device), 0.0)
        yield
    finally:
        for name, of in weights.items():
            for weight, before in zip(of, dense[name], strict=True):
                weight.copy_(before)


def _run(
    model: nn.Module, batch: Any, adapter: Adapter, outputs: dict[str, Tensor], watched: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Run the model; keep the outputs of its blocks, and return the answers, or the features that give them."""

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(value, Tensor):
                outputs[path] = value.detach()

        return hook

    with ExitStack() as stack:
        for path, module in watched.items():
            stack.callback(module.register_forward_hook(keep(path)).remove)
        said = adapter.forward(model, batch)
        if said is None:
            said = call(model, batch)
    return _last_words(said, batch)


def _last_words(said: Any, batch: Any) -> dict[str, Tensor]:
    if isinstance(said, Tensor):
        said = {"logits": said}
    if not isinstance(said, Mapping):
        return {}
    for names in FEATURES:
        found = [said[name] for name in names if isinstance(said.get(name), Tensor) and said[name].dim() == 2]
        if len(found) == 2 and found[0].shape[1] == found[1].shape[1]:
            image, text = (nn.functional.normalize(value.float(), dim=-1).cpu() for value in found)
            words = {"image": image, "text": text}
            break
    else:
        words = {}
    for name in LOGITS:
        if isinstance(logits := said.get(name), Tensor) and logits.dim() in (2, 3) and logits.shape[-1] > 1:
            words["answer"] = _choices(logits, batch).cpu()
            break
    return words


def _choices(logits: Tensor, batch: Any) -> Tensor:
    chosen = logits.argmax(dim=-1)
    given = batch if isinstance(batch, Mapping) else {}
    for name, real in (("labels", lambda value: value != IGNORED), ("attention_mask", lambda value: value.bool())):
        value = given.get(name)
        if isinstance(value, Tensor) and value.shape == chosen.shape and real(value).any():
            return chosen[real(value)]
    return chosen.flatten()


def _squares(value: Tensor, dense: Tensor, real: Mapping[str, Any]) -> tuple[float, float]:
    """Return the squared difference and the squared length, over the real tokens where a mask fits the output."""
    for mask in real.values():
        if isinstance(mask, Tensor) and value.dim() == 3 and mask.shape == value.shape[:2]:
            value, dense = value[mask], dense[mask]
            break
    value, dense = value.double(), dense.double()
    return float((value - dense).square().sum()), float(dense.square().sum())


def _answers(outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    joined = {name: torch.cat([one[name] for one in outputs]) for name in (outputs[0] if outputs else ())}
    answers = {}
    if "image" in joined and len(joined["image"]) == len(joined["text"]) > 1:
        likeness = joined["image"] @ joined["text"].T
        answers = {"image to text": likeness.argmax(1), "text to image": likeness.argmax(0)}
    if "answer" in joined:
        answers["next token or class"] = joined["answer"]
    return answers


def _fidelity(
    layout: Layout,
    blocks: Mapping[str, str],
    sums: Mapping[str, tuple[float, float]],
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
) -> Fidelity:
    errors = {block: wrong / size for block, (wrong, size) in sums.items() if size}
    groups = {}
    for group, layers in layout.groups.items():
        here = [errors[block] for block in dict.fromkeys(blocks[layer.name] for layer in layers) if block in errors]
        if here:
            groups[group] = sum(here) / len(here)
    same = {what: float((found[what] == answer).double().mean()) for what, answer in expected.items()}
    return Fidelity(errors, groups, same, {what: len(answer) for what, answer in expected.items()})
