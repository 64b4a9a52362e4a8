"""Loading models, and the models that Hugging Face lacks."""

from multiflow.models.load import load_model
from multiflow.models.original import original_names

__all__ = ["load_model", "original_names"]
