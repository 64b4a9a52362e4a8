from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

import multiflow as mf
from multiflow.families.task_models import derive, places_of

LAYERS = r"^layers\."


class TilesConfig(PretrainedConfig):
    model_type = "tiles"

    def __init__(self, image_size: int = 16, side: int = 4, width: int = 32, **kwargs: Any):
        self.image_size, self.side, self.width = image_size, side, width
        super().__init__(**kwargs)


class TilesForClassification(PreTrainedModel):
    config_class = TilesConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, config: TilesConfig):
        super().__init__(config)
        self.embed = nn.Conv2d(3, config.width, config.side, config.side)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(2))
        self.classifier = nn.Linear(config.width * (config.image_size // config.side) ** 2, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> ImageClassifierOutput:
        x = self.embed(pixel_values).flatten(2).mT
        for layer in self.layers:
            x = x + F.gelu(layer(x))
        logits = self.classifier(x.flatten(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def adapter(model: nn.Module) -> mf.Adapter:
    def run(model: Any, batch: Any) -> Any:
        return model(pixel_values=batch["pixel_values"])

    return mf.Adapter(
        groups={"vision": LAYERS}, forward=run, loss=lambda model, batch: model(**batch).loss, name="tiles"
    )


def classification(model: Any, *, classes: int, image_size: int | None = None) -> tuple[Any, Any]:
    config = TilesConfig.from_dict({**model.config.to_dict(), "num_labels": classes})

    def source(name: str) -> str | None:
        return None if name.startswith("classifier") else name

    torch.manual_seed(0)
    task = derive(TilesForClassification, config, model, source, {})
    return task, places_of(task, model, LAYERS, source)
