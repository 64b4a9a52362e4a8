"""Any model of transformers: groups, token streams and loss read from the model itself; no table of known models."""

from collections.abc import Mapping
from typing import Any

from multiflow.families.family import FAMILIES, Family, ModelType, Preset

PLAIN: dict[str, Any] = {"image_size": None, "augment": False, "schedule": "cosine", "warmup": 0.03}
LAPTOP: dict[str, Any] = {**PLAIN, "steps": 100, "val_limit": 200}
TUNED: dict[str, Any] = {"weight_decay": 0.0, "betas": (0.9, 0.999)}
PRESETS: Mapping[str, Mapping[str, Preset]] = {
    # as is usual for such models: CLIP's own tuning on pairs, and LLaVA's on conversations (arXiv 2304.08485)
    "paper": {
        "retrieval": Preset(1e-5, 128, 5, **PLAIN | {"warmup": 0.1}),
        "captioning": Preset(2e-5, 128, 1, **PLAIN, **TUNED, evaluate={"metrics": ("CIDEr",)}),
        "vqa": Preset(2e-5, 128, 1, **PLAIN, **TUNED),
        "transcription": Preset(1e-5, 64, 3, **PLAIN, **TUNED),
    },
    "shapes": {
        "retrieval": Preset(1e-4, 32, **LAPTOP),
        "captioning": Preset(1e-4, 32, **LAPTOP, evaluate={"metrics": ("CIDEr",)}),
        "vqa": Preset(1e-4, 32, **LAPTOP),
        "transcription": Preset(1e-4, 32, **LAPTOP),
    },
}
TASKS = "retrieval", "captioning", "vqa", "classification", "transcription"

FAMILIES.add(
    "transformers",
    Family(
        name="transformers",
        title="transformers",
        home=__name__,
        models={},
        others=ModelType(
            adapter=".adapter:automatic_adapter",
            tasks=TASKS,
            evaluates=TASKS,
            batches=".calibrating:calibration_examples",
            sample=".calibrating:made_up_batch",
        ),
        accepts=".adapter:is_of_transformers",
        preprocessing=".tasks:preprocessing_of",
        refuse=".tasks:refuse_unable",
        task_models={task: f".tasks:{task.upper()}" for task in TASKS},
        presets=PRESETS,
    ),
)
