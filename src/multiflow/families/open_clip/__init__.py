"""State dicts of open_clip, in and out: its CLIP models are those of transformers under other names."""

from multiflow.families.family import FAMILIES, Family

FAMILIES.add(
    "open_clip",
    Family(
        name="open_clip",
        title="open_clip",
        home=__name__,
        models={},  # once loaded they are models of transformers, of the type "clip"
        release=".names:OPEN_CLIP",
    ),
)
