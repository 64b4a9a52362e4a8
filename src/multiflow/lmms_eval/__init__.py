"""The plugin for lmms-eval, which finds it by the entry point ``lmms_eval.models``: ``--model multiflow``.

`manifest` is all that lmms-eval loads to list models; the model itself is in `multiflow.lmms_eval.model`. Nothing else
of the library may need lmms-eval, and nothing lives here that is of use without it.
"""

from typing import Any


def manifest() -> Any:
    """Return what lmms-eval registers: the name of the model, and the path of its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="multiflow", chat_class_path="multiflow.lmms_eval.model.SparseModel")
