"""ViT, DINO and DINOv2."""
