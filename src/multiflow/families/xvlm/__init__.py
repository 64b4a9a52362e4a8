"""X-VLM's models in Hugging Face style, and the original release layout."""

from transformers import AutoConfig, AutoModel

from multiflow.families.xvlm import adapter as _adapter  # noqa: F401 (registers the family)
from multiflow.families.xvlm.captioning import XVLMForCaptioning
from multiflow.families.xvlm.config import XVLMConfig
from multiflow.families.xvlm.pretraining import XVLMForPretraining, XVLMOutput
from multiflow.families.xvlm.retrieval import XVLMForRetrieval
from multiflow.families.xvlm.vqa import XVLMForVQA

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
