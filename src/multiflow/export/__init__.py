"""Export: what a sparse model is shipped as, so that its zeros buy bytes.

Here live the doors that write and read shipped models. Not here: training, evaluation, and masks themselves; the
packed format is in `multiflow.base.packed`, where loading reads it as well.
"""

from multiflow.export.packed import export, unpack

__all__ = ["export", "unpack"]
