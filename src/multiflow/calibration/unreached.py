"""What is said of layers and groups that no batch reaches: a warning early, an error that names them, experts apart."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Collection, Mapping, Sequence

from multiflow.base.errors import MultiflowError, counted
from multiflow.base.types import Layer, Layout
from multiflow.calibration.stats import stack_of

EARLY = 8  # batches after which a whole group that saw nothing is an error, rather than at the end
EXPERT = re.compile(r"(^|\.)(local_)?experts\.\d+(\.|$)")
"""In the path of a layer: one of a list of experts."""


def check_groups_reached(layout: Layout, reached: Collection[str], batch: int) -> None:
    """Say early that a whole group saw nothing so far, such as the vision tower of batches of text alone.

    Args:
        layout: the layers.
        reached: names of those that have seen something.
        batch: how many batches there were: after the first it is a warning, later an error.
    """
    for group, layers in layout.groups.items():
        if any(layer.name in reached for layer in layers):
            continue
        if batch > 1:
            raise MultiflowError(
                f"nothing reached {counted(len(layers), 'layer')} of group '{group}' in {batch} batches; "
                f"{never_reached(layout, [layer.name for layer in layers])}"
            )
        logging.getLogger("multiflow").warning(
            "the first batch holds nothing that the %d layers of group '%s' see; unless others do, this ends after "
            "%d batches",
            len(layers),
            group,
            EARLY,
        )


def check_loss_reaches(layout: Layout, missed: Collection[str]) -> None:
    """Refuse a loss that reaches no layer of a whole group, such as that of batches of text alone.

    Args:
        layout: the layers.
        missed: names of those whose gradient is nothing but zero because nothing came back to them.
    """
    for group, layers in layout.groups.items():
        if all(layer.name in missed for layer in layers):
            raise MultiflowError(
                f"the loss reaches none of the {counted(len(layers), 'layer')} of group '{group}': no batch holds what "
                "they take in, or Adapter(loss=...) does not use them; give batches or a loss that do, or leave the "
                "group dense with exclude=..."
            )


def without_experts(missed: Sequence[str], layout: Layout, counts: Mapping[str, int]) -> list[str]:
    """Leave out the experts to which no token was sent while others of their stack saw some, and warn of them."""
    seen = {stack_of(name) for name, count in counts.items() if count}
    unused = [name for name in missed if is_expert(layout[name]) and stack_of(name) in seen]
    if unused:
        experts = [layer for layer in layout.layers if is_expert(layer)]
        warnings.warn(
            f"{len(unused)} of the {len(experts)} weights of experts saw no token, first '{unused[0]}': the router "
            "sent none there; their input features are taken to be alike, as large as those of the other experts on "
            "average, so that their weights are told apart by their size; give more batches",
            stacklevel=4,
        )
    lost = set(unused)
    return [name for name in missed if name not in lost]


def is_expert(layer: Layer) -> bool:
    """Whether a layer is the weight of one of several experts, to which a router may send no token."""
    return (layer.part is not None and layer.part.index is not None) or EXPERT.search(layer.name) is not None


def never_reached(layout: Layout, missed: Sequence[str]) -> MultiflowError:
    """Return the error of layers that saw nothing: how many by group, and one regex that finds them all."""
    lost = set(missed)
    groups = [
        f"{count} of {len(layers)} of group '{group}'"
        for group, layers in layout.groups.items()
        if (count := sum(layer.name in lost for layer in layers))
    ]
    whole = [group for group, layers in layout.groups.items() if all(layer.name in lost for layer in layers)]
    why = f"; no batch holds what '{whole[0]}' takes in" if whole else ""
    return MultiflowError(
        f"{len(missed)} of {len(layout)} layers were never reached by the forward, first '{missed[0]}' "
        f"({', '.join(groups)}){why}; give batches or an Adapter(forward=...) that reach them, or leave them "
        f"dense with exclude=r'{_covering(missed, layout)}'"
    )


def _covering(missed: Sequence[str], layout: Layout) -> str:
    """A regex of the shortest paths under which all layers are among those missed."""
    seen = {
        ".".join(parts[:n])
        for name in layout
        if name not in missed
        for parts in [name.split(".")]
        for n in range(len(parts))
    }
    paths: dict[str, None] = {}
    for name in missed:
        parts = name.split(".")
        paths[next(path for n in range(1, len(parts) + 1) if (path := ".".join(parts[:n])) not in seen)] = None
    return f"^({'|'.join(map(re.escape, paths))})(\\.|$)"
