"""Sizes of BLIP's task models: those of the pretraining model, and what the task adds."""

from __future__ import annotations

from typing import Any

from multiflow.families.blip.config import BlipPretrainingConfig
from multiflow.families.sizes import check_rules


class BlipRetrievalConfig(BlipPretrainingConfig):
    """Sizes of a BLIP retrieval model; see `BlipPretrainingConfig`."""

    model_type = "blip-retrieval"

    def __init__(self, **sizes: Any):  # without one, transformers makes one up that knows no defaults
        super().__init__(**sizes)


class BlipCaptioningConfig(BlipPretrainingConfig):
    """Sizes of a BLIP captioning model.

    Args:
        eos_token_id: the token that ends a caption, [SEP]; None = captions go on to their longest length.
        **sizes: those of `BlipPretrainingConfig`.

    Raises:
        MultiflowError: an unknown or inconsistent size.
    """

    model_type = "blip-captioning"

    def __init__(self, eos_token_id: int | None = None, **sizes: Any):
        super().__init__(eos_token_id=eos_token_id, **sizes)


class BlipVQAConfig(BlipPretrainingConfig):
    """Sizes of a BLIP model for questions about images.

    Args:
        drop_path: share of the images that, in training, go round each branch of the vision tower's last layer; layers
            before it take less, the first none.
        **sizes: those of `BlipPretrainingConfig`.

    Raises:
        MultiflowError: an unknown or inconsistent size.
    """

    model_type = "blip-vqa"

    def __init__(self, drop_path: float = 0.0, **sizes: Any):
        self.drop_path = drop_path
        super().__init__(**sizes)
        check_rules({"drop_path": drop_path}, [("drop_path", "at least 0 and less than 1", 0 <= drop_path < 1)])
