"""BLIP's models, put together from transformers' own BLIP parts, and the original release layout."""

from transformers import AutoConfig, AutoModel

from multiflow.families.blip import adapter as _adapter  # noqa: F401 (registers the family)
from multiflow.families.blip.captioning import BlipForCaptioning
from multiflow.families.blip.config import BlipPretrainingConfig
from multiflow.families.blip.pretraining import BlipForPretraining, BlipPretrainingOutput
from multiflow.families.blip.retrieval import BlipForRetrieval
from multiflow.families.blip.task_configs import BlipCaptioningConfig, BlipRetrievalConfig, BlipVQAConfig
from multiflow.families.blip.vqa import BlipForVQA

for _model in (BlipForPretraining, BlipForRetrieval, BlipForCaptioning, BlipForVQA):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)

__all__ = [
    "BlipCaptioningConfig",
    "BlipForCaptioning",
    "BlipForPretraining",
    "BlipForRetrieval",
    "BlipForVQA",
    "BlipPretrainingConfig",
    "BlipPretrainingOutput",
    "BlipRetrievalConfig",
    "BlipVQAConfig",
]
