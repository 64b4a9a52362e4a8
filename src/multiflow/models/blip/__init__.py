"""BLIP's pretraining model, put together from transformers' own BLIP parts, and its original release layout."""

from transformers import AutoConfig, AutoModel

from multiflow.models.blip.config import BlipPretrainingConfig
from multiflow.models.blip.pretraining import BlipForPretraining, BlipPretrainingOutput

AutoConfig.register(BlipPretrainingConfig.model_type, BlipPretrainingConfig, exist_ok=True)
AutoModel.register(BlipPretrainingConfig, BlipForPretraining, exist_ok=True)

__all__ = ["BlipForPretraining", "BlipPretrainingConfig", "BlipPretrainingOutput"]
