"""Formats: what a sparse model is shipped as, so that its zeros buy bytes.

Here live the doors that write shipped models and turn them back, one format a file, smaller models without what a mask
has killed (`compact`), what computes with packed weights on a CPU (`sparse_runtime`), and how fast all of it is here
(`speed`). Not here: training, evaluation, and masks themselves; how a packed file is coded is in
`multiflow.base.packed`, where loading reads it as well.
"""

from multiflow.formats.packed import export, unpack
from multiflow.formats.runtime import sparse_runtime
from multiflow.formats.smaller import compact
from multiflow.formats.speeds import speed

__all__ = ["compact", "export", "sparse_runtime", "speed", "unpack"]
