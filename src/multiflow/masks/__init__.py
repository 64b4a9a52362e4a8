"""Masks: selecting which weights go, packing, files of both formats, applying, comparing, zeros that stay.

No pruner and no model of a family lives here: masks know layers by name and shape alone.
"""

from multiflow.masks.compare import Agreement, by_group, compare, total
from multiflow.masks.files import is_original
from multiflow.masks.keep import keep_sparse
from multiflow.masks.masks import Masks, hash_weight
from multiflow.masks.select import keep_above, pack, select, unpack

__all__ = [
    "Agreement",
    "Masks",
    "by_group",
    "compare",
    "hash_weight",
    "is_original",
    "keep_above",
    "keep_sparse",
    "pack",
    "select",
    "total",
    "unpack",
]
