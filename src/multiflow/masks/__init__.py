"""Masks: selecting, packing, saving, applying and keeping them."""

from multiflow.masks.compare import Agreement, by_group, compare, total
from multiflow.masks.keep import keep_sparse
from multiflow.masks.masks import Masks, hash_weight, pack, unpack
from multiflow.masks.original import is_original
from multiflow.masks.select import keep_above, select

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
