"""Image-text data: loaders for the real layouts, tokens, pixels and batches."""

from multiflow.data.collate import clip_box, collate_pairs, collate_regions
from multiflow.data.images import CLIP_MEAN, CLIP_STD, to_pixels
from multiflow.data.masking import mask_tokens
from multiflow.data.text import build_word_tokenizer, encode_texts, load_tokenizer

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "build_word_tokenizer",
    "clip_box",
    "collate_pairs",
    "collate_regions",
    "encode_texts",
    "load_tokenizer",
    "mask_tokens",
    "to_pixels",
]
