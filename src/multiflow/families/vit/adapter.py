"""ViT, DINO and DINOv2: the encoder's linear layers are one group, ``vision``; the rest stays dense.

A classifier is the encoder of a pretrained model and a new head. The names of the release are those of transformers
4.31: what is now ``vit.layers.N.attention.q_proj`` was ``vit.encoder.layer.N.attention.attention.query``. Names are
read in either form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2ForImageClassification, ViTForImageClassification

from multiflow.base.adapter import Adapter, require
from multiflow.base.errors import MultiflowError, unknown
from multiflow.families.family import Places
from multiflow.families.original import Original
from multiflow.families.task_models import derive, places_of, resize_positions


def vit(model: nn.Module) -> Adapter:
    """Build the adapter of a ``ViTForImageClassification``, ``Dinov2ForImageClassification`` or their bare encoders."""
    return Adapter(
        groups={"vision": r"(^|\.)(layers?\.\d+)\."},
        forward=lambda model, batch: _logits(model, batch),
        loss=_loss,
        name=str(model.config.model_type),  # type: ignore[union-attr]
    )


def _logits(model: Any, batch: Mapping[str, Any]) -> Any:
    require(batch, "pixel_values")
    return model(pixel_values=batch["pixel_values"].to(model.dtype))


def _loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy of the classifier."""
    require(batch, "pixel_values", "labels")
    out = _logits(model, batch)
    if "logits" not in out:
        raise MultiflowError(
            f"a {type(model).__name__} has no classifier, so it has no loss; use the ForImageClassification model"
        )
    return F.cross_entropy(out.logits.float(), batch["labels"])


CLASSES: dict[str, Any] = {"vit": ViTForImageClassification, "dinov2": Dinov2ForImageClassification}
POSITIONS = "embeddings.position_embeddings"


def classification(
    model: Any, *, classes: int, image_size: int | None = None
) -> tuple[ViTForImageClassification | Dinov2ForImageClassification, Places]:
    """Build a classifier of images.

    Args:
        model: a classifier, whose head is left behind, or a bare encoder.
        classes: how many labels there are.
        image_size: side of the images, where it differs from that of the pretraining.
    """
    if classes < 1:
        raise MultiflowError(f"classes is {classes}; it must be at least 1")
    old, task_class = model.config, CLASSES[model.config.model_type]
    side = image_size or old.image_size
    if not isinstance(side, int) or side < old.patch_size:
        raise MultiflowError(f"image_size is {side}; it must be at least the patch size, {old.patch_size}")
    labels = {"num_labels": classes, "id2label": None, "label2id": None, "image_size": side}
    config = type(old).from_dict({**old.to_dict(), **labels, "architectures": None})
    prefix = f"{task_class.base_model_prefix}."
    inside = prefix if hasattr(model, task_class.base_model_prefix) else ""

    def source(name: str) -> str | None:
        return inside + name.removeprefix(prefix) if name.startswith(prefix) else None

    positions = inside + POSITIONS
    resized = resize_positions(model.get_parameter(positions)[0], side // old.patch_size)[None]
    task = derive(task_class, config, model, source, {positions: resized})
    return task, places_of(task, model, LAYERS, source)


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
