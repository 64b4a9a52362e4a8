"""Image-text data: loaders for the layouts of the real data sets, tokens, pixels and batches."""

from multiflow.data.assemble import Inputs
from multiflow.data.batches import Batches
from multiflow.data.collate import clip_box, collate_pairs, collate_regions
from multiflow.data.dataset import BrokenItem, Dataset, Mixed, Pair, Question, Region, RegionItem, Skip, SkipReport
from multiflow.data.images import CLIP_MEAN, CLIP_STD, VIT_MEAN, VIT_STD, to_pixels
from multiflow.data.join import join, whole_images
from multiflow.data.layouts.vqa import answer_list, answer_weights
from multiflow.data.masking import mask_tokens
from multiflow.data.source import open_data
from multiflow.data.text import build_word_tokenizer, encode_texts, load_tokenizer

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
