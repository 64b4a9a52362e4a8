"""X-VLM (Zeng et al., arXiv 2111.08276): a CLIP ViT, BERT, and fusion layers, in Hugging Face style."""

from typing import Any

from multiflow.families.family import FAMILIES, Family, ModelType, Preset, Texts

CIDER = {"metrics": ("CIDEr",)}
LAPTOP: dict[str, Any] = {"image_size": None, "augment": False, "val_limit": 200}

FAMILIES.add(
    "xvlm",
    Family(
        name="xvlm",
        title="X-VLM",
        home=__name__,
        models={
            "xvlm": ModelType(
                adapter=".adapter:pretraining",
                tasks=("retrieval", "captioning", "vqa"),
                evaluates=("retrieval",),
                original=".adapter:XVLM",
                batches=".adapter:calibration_pairs",
            ),
            "xvlm-retrieval": ModelType(".adapter:task", tasks=("retrieval",), evaluates=("retrieval",)),
            "xvlm-captioning": ModelType(".adapter:task", tasks=("captioning",), evaluates=("captioning",)),
            "xvlm-vqa": ModelType(".adapter:task", tasks=("vqa",), evaluates=("vqa",)),
        },
        classes=".models",
        release=".adapter:XVLM",
        task_models={
            "retrieval": ".tasks:retrieval",
            "captioning": ".tasks:captioning",
            "vqa": ".tasks:vqa",
        },
        texts=Texts(),
        scoring=".adapter:SCORING",
        recipe=".tasks:RECIPE",
        answer_weights={"vg": 0.5},
        presets={
            "paper": {
                "retrieval": Preset(3e-5, 128, 10, new_lr=2.0),
                "captioning": Preset(1e-5, 256, 5, options={"label_smoothing": 0.1}, evaluate=CIDER),
                "vqa": Preset(5e-5, 256, 10, new_lr=2.0),
            },
            "shapes": {
                "retrieval": Preset(2e-4, 32, steps=400, **LAPTOP, new_lr=2.0, evaluate={"k_test": 16}),
                "captioning": Preset(3e-4, 32, steps=400, **LAPTOP, evaluate=CIDER),
                "vqa": Preset(3e-4, 64, steps=500, **LAPTOP, new_lr=2.0, evaluate={"top": 16}),
            },
        },
    ),
)
