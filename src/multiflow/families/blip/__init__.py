"""BLIP (Li et al., arXiv 2201.12086), put together from transformers' own parts, and transformers' BLIP itself."""

from typing import Any

from multiflow.families.family import FAMILIES, Family, ModelType, Preset, Texts

PAPER: dict[str, Any] = {"weight_decay": 0.05, "schedule": "cosine", "warmup": 0.0, "betas": (0.9, 0.999)}
MOMENTUM = {"queue_size": 57600, "alpha": 0.4, "momentum": 0.995}
CIDER = {"metrics": ("CIDEr",)}
LAPTOP: dict[str, Any] = {"image_size": None, "augment": False, "val_limit": 200}
OWN, SAME = ".original:BLIP", ".original:TRANSFORMERS_BLIP"

FAMILIES.add(
    "blip",
    Family(
        name="blip",
        title="BLIP",
        home=__name__,
        models={
            "blip-pretraining": ModelType(
                adapter=".adapter:pretraining",
                tasks=("retrieval", "captioning", "vqa"),
                evaluates=("retrieval",),
                untrained=("captioning",),
                original=OWN,
                batches=".adapter:calibration_pairs",
            ),
            "blip-retrieval": ModelType(".adapter:retrieval", ("retrieval",), ("retrieval",), original=SAME),
            "blip-captioning": ModelType(".adapter:captioning", ("captioning",), ("captioning",), original=SAME),
            "blip-vqa": ModelType(".adapter:vqa", ("vqa",), ("vqa",), original=SAME),
            "blip": ModelType(
                ".adapter:of_transformers", original=SAME, batches=".adapter:calibration_pairs_of_transformers"
            ),
        },
        classes=".models",
        release=OWN,
        task_models={
            "retrieval": ".tasks:retrieval",
            "captioning": ".tasks:captioning",
            "vqa": ".tasks:vqa",
        },
        texts=Texts(ends=True, length=35, lengths={"captioning": 40}),
        scoring=".adapter:SCORING",
        recipe=".tasks:RECIPE",
        memory=".contrastive:MEMORY",
        answer_weights={"vg": 0.2},
        presets={
            "paper": {
                "retrieval": Preset(1e-5, 128, 6, **PAPER, options=MOMENTUM),
                "captioning": Preset(1e-5, 256, 5, **PAPER, evaluate=CIDER),
                "vqa": Preset(2e-5, 256, 10, **PAPER, options={"drop_path": 0.1}),
            },
            "shapes": {
                "retrieval": Preset(
                    2e-4, 32, steps=400, **LAPTOP, options={"queue_size": 1024, "alpha": 0.4}, evaluate={"k_test": 16}
                ),
                "captioning": Preset(3e-4, 32, steps=400, **LAPTOP, evaluate=CIDER),
                "vqa": Preset(3e-4, 64, steps=500, **LAPTOP, options={"drop_path": 0.0}, evaluate={"top": 16}),
            },
        },
    ),
)
