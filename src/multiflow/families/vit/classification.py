"""Image classification with ViT, DINO or DINOv2: the encoder of a pretrained model and a new head."""

from __future__ import annotations

from typing import Any

from transformers import Dinov2ForImageClassification, ViTForImageClassification

from multiflow.base.errors import MultiflowError
from multiflow.families.family import Places
from multiflow.families.task_models import derive, places_of, resize_positions
from multiflow.families.vit.original import LAYERS

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
