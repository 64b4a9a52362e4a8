"""A family from outside the package, in one folder: a small classifier of images that are cut into tiles."""

from multiflow.families import FAMILIES, Family, ModelType, Preset

FAMILIES.add(
    "tiles",
    Family(
        name="tiles",
        title="Tiles",
        home=__name__,
        models={
            "tiles": ModelType(
                adapter=".model:adapter",
                tasks=("classification",),
                evaluates=("classification",),
                batches="multiflow.families.batches:image_batches",
            )
        },
        classes=".model",
        task_models={"classification": ".model:classification"},
        presets={"quick": {"classification": Preset(1e-2, 32, steps=30, image_size=None, augment=False)}},
    ),
)
