"""Handwritten digits, and the small ViT that tells them apart."""
