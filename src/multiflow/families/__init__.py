"""Families of models: for each one folder, with its models, its adapter and its release; here what they share."""

from multiflow.families.family import FAMILIES, Family, ModelType, Preset, Texts, adapter_for

__all__ = ["FAMILIES", "Family", "ModelType", "Preset", "Texts", "adapter_for"]
