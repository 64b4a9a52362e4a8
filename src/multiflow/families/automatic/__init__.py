"""Any model of transformers: groups, token streams and loss read from the model itself; no table of known models."""

from multiflow.families.automatic.adapter import automatic_adapter

__all__ = ["automatic_adapter"]
