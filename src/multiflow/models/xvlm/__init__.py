"""X-VLM's models in Hugging Face style, and the original release layout."""

from transformers import AutoConfig, AutoModel

from multiflow.models.xvlm.captioning import XVLMForCaptioning
from multiflow.models.xvlm.config import XVLMConfig
from multiflow.models.xvlm.pretraining import XVLMForPretraining, XVLMOutput
from multiflow.models.xvlm.retrieval import XVLMForRetrieval
from multiflow.models.xvlm.vqa import XVLMForVQA

for _model in (XVLMForPretraining, XVLMForRetrieval, XVLMForCaptioning, XVLMForVQA):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)

__all__ = [
    "XVLMConfig",
    "XVLMForCaptioning",
    "XVLMForPretraining",
    "XVLMForRetrieval",
    "XVLMForVQA",
    "XVLMOutput",
]
