"""Adapters: what the library must know of a model."""

from multiflow.adapters import blip, vit, xvlm
from multiflow.adapters.base import Adapter, parts
from multiflow.adapters.families import FAMILIES, adapter_for
from multiflow.adapters.layout import device_of

__all__ = ["FAMILIES", "Adapter", "adapter_for", "blip", "device_of", "parts", "vit", "xvlm"]
