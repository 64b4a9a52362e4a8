"""ViT, DINO and DINOv2: the names that their weights had when they were released (transformers 4.31).

transformers 5 moved the modules: what is now ``vit.layers.N.attention.q_proj`` was
``vit.encoder.layer.N.attention.attention.query``. Names are read in either form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from multiflow.base.errors import unknown
from multiflow.families.original import Original

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = {
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
}
MLP = {
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}
LAYER = {r"(^|\.)(?:encoder\.)?layers?\.(\d+)\.": r"\1encoder.layer.\2."}
LAYERS = r"(^|\.)layers?\.\d+\..*(attention|intermediate|output|mlp)\."


def vit_key(name: str) -> str:
    """Name of a ViT parameter in transformers 4.31.

    >>> vit_key("vit.layers.0.attention.o_proj.weight")
    'vit.encoder.layer.0.attention.output.dense.weight'
    """
    return _replace(name, {**LAYER, **ATTENTION, **MLP})


def dinov2_key(name: str) -> str:
    """Name of a DINOv2 parameter in transformers 4.31.

    >>> dinov2_key("dinov2.encoder.layer.0.attention.q_proj.weight")
    'dinov2.encoder.layer.0.attention.attention.query.weight'
    """
    return _replace(name, {**LAYER, **ATTENTION})


def _replace(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def build_vit(sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> PreTrainedModel:
    """Build an image classifier from the names of ``ViTConfig`` and ``dropout`` (of both kinds).

    Where the sizes do not say how many labels there are, the classifier in the file does.
    """
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {key: value for key, value in sizes.items() if key != "class"}
    if "model_type" not in sizes:
        known = [*ViTConfig().to_dict(), "num_labels", "dropout"]
        for key in sizes:
            if key not in known:
                raise unknown("size", key, [k for k in known if not k.startswith("_")])
    if "dropout" in sizes:
        rate = sizes.pop("dropout")
        sizes |= {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    if "num_labels" not in sizes and "id2label" not in sizes and "classifier.bias" in state:
        sizes["num_labels"] = len(state["classifier.bias"])
    return ViTForImageClassification(ViTConfig.from_dict(sizes))


VIT = Original(layers=LAYERS, key=vit_key, build=build_vit, ignored=r"(^|\.)pooler\.", presets={"base": {}})
DINOV2 = Original(layers=LAYERS, key=dinov2_key)
