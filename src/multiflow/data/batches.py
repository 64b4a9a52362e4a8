"""Batches of a data set in a fixed order."""

from multiflow.data.collate import collate_pairs, collate_regions

__all__ = ["collate_pairs", "collate_regions"]
