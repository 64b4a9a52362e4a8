"""Any model of transformers: groups, token streams and loss read from the model itself; no table of known models."""

from multiflow.families.family import FAMILIES, Family, ModelType

FAMILIES.add(
    "transformers",
    Family(
        name="transformers",
        title="transformers",
        home=__name__,
        models={},
        others=ModelType(adapter=".adapter:automatic_adapter", batches=".reading:calibration_examples"),
        accepts=".adapter:is_of_transformers",
    ),
)
