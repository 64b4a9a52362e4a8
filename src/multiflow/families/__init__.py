"""Families of models: one folder each, with its models, adapter, task models, release, presets and batches.

Here live the record `Family`, what several families share, opening a model by name, and adapters that are read from a
model of transformers itself. Not here: training, and anything that a folder of a family would have to be named in.
"""

from multiflow.families.family import FAMILIES, Family, ModelType, Preset, Texts, adapter_for, original_names

__all__ = ["FAMILIES", "Family", "ModelType", "Preset", "Texts", "adapter_for", "original_names"]
