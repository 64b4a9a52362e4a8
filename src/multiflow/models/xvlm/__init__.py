"""X-VLM as a Hugging Face style model, and its original release layout."""

from multiflow.models.xvlm.config import XVLMConfig
from multiflow.models.xvlm.pretraining import XVLMForPretraining, XVLMOutput

__all__ = ["XVLMConfig", "XVLMForPretraining", "XVLMOutput"]
