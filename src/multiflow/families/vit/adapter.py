"""ViT and DINO: the encoder's linear layers are one group, ``vision``; embeddings and the classifier stay dense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from multiflow.base.adapter import Adapter, require
from multiflow.base.errors import MultiflowError


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
