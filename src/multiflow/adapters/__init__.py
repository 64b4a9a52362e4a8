"""Adapters: what the library must know of a model."""

from multiflow.adapters import blip, vit, xvlm
from multiflow.adapters.base import Adapter, parts
from multiflow.adapters.families import FAMILIES, adapter_for

__all__ = ["FAMILIES", "Adapter", "adapter_for", "blip", "parts", "vit", "xvlm"]
