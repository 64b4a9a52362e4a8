"""Families of models: for each what the library must know of it, its models and its release; one folder a family."""

from multiflow.base.adapter import Adapter, parts
from multiflow.families.adapters import FAMILIES, adapter_for
from multiflow.families.load import load_model
from multiflow.families.original import original_names

__all__ = ["FAMILIES", "Adapter", "adapter_for", "load_model", "original_names", "parts"]
