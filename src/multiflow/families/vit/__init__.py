"""ViT, DINO and DINOv2: encoders of images, of transformers' own classes."""

from multiflow.families.family import FAMILIES, Family, ModelType, Preset

FAMILIES.add(
    "dino",
    Family(
        name="dino",
        title="DINO",
        home=__name__,
        models={
            name: ModelType(
                adapter=".adapter:vit",
                tasks=("classification",),
                evaluates=("classification",),
                original=f".adapter:{name.upper()}",
                batches="multiflow.families.batches:image_batches",
            )
            for name in ("vit", "dinov2")
        },
        release=".adapter:VIT",
        task_models={"classification": ".adapter:classification"},
        presets={
            "paper": {
                "classification": Preset(
                    1e-5, 32, 10, None, 0.0, "cosine", betas=(0.9, 0.999), image_size=None, val_split="test"
                )
            },
            "shapes": {
                "classification": Preset(
                    1e-3, 64, steps=300, betas=(0.9, 0.999), image_size=None, augment=False, val_split="test"
                )
            },
        },
    ),
)
