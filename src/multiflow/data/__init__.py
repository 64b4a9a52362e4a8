"""Image-text data: what they are, how they lie on disk, and how batches are made of them.

`source` opens what a layout of `layouts/` recognises; `dataset` has the values, `images` and `text` turn files into
pixels and tokens, `collate` and `batches` make batches. No model is known here.
"""

from multiflow.data.batches import Batches
from multiflow.data.collate import Inputs, clip_box, collate_pairs, collate_regions
from multiflow.data.dataset import (
    BrokenItem,
    Dataset,
    Mixed,
    Pair,
    Question,
    Region,
    RegionItem,
    Skip,
    SkipReport,
    join,
    whole_images,
)
from multiflow.data.images import CLIP_MEAN, CLIP_STD, VIT_MEAN, VIT_STD, to_pixels
from multiflow.data.items import answer_list, answer_weights
from multiflow.data.source import open_data
from multiflow.data.text import build_word_tokenizer, encode_texts, load_tokenizer, mask_tokens

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "VIT_MEAN",
    "VIT_STD",
    "Batches",
    "BrokenItem",
    "Dataset",
    "Inputs",
    "Mixed",
    "Pair",
    "Question",
    "Region",
    "RegionItem",
    "Skip",
    "SkipReport",
    "answer_list",
    "answer_weights",
    "build_word_tokenizer",
    "clip_box",
    "collate_pairs",
    "collate_regions",
    "encode_texts",
    "join",
    "load_tokenizer",
    "mask_tokens",
    "open_data",
    "to_pixels",
    "whole_images",
]
