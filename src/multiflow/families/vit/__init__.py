"""ViT, DINO and DINOv2."""

from multiflow.families.vit import adapter as _adapter  # noqa: F401 (registers the family)
