"""X-VLM as a Hugging Face style model, and its original release layout."""

from transformers import AutoConfig, AutoModel

from multiflow.models.xvlm.config import XVLMConfig
from multiflow.models.xvlm.pretraining import XVLMForPretraining, XVLMOutput

AutoConfig.register(XVLMConfig.model_type, XVLMConfig, exist_ok=True)
AutoModel.register(XVLMConfig, XVLMForPretraining, exist_ok=True)

__all__ = ["XVLMConfig", "XVLMForPretraining", "XVLMOutput"]
