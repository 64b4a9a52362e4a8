"""Tiny models that listen, with random weights, in folders as people have them; and tones to listen to."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tokenizers import pre_tokenizers

from tests.families.automatic.processors import byte_tokenizer

RATE = 16000
SIZES: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
WAVES: dict[str, Any] = {
    "hidden_size": 16,
    "conv_dim": (16, 16),
    "conv_stride": (20, 8),
    "conv_kernel": (20, 8),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")


def whisper(folder: Path) -> Path:
    """Write a Whisper that listens to one second."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = {word: len(letters) + i for i, word in enumerate(SPECIAL)}
    tokenizer = transformers.WhisperTokenizer(
        vocab=letters | words, merges=[], additional_special_tokens=list(SPECIAL[1:])
    )
    config = transformers.WhisperConfig(
        **SIZES,
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        max_source_positions=50,
        max_target_positions=40,
        pad_token_id=words["<|endoftext|>"],
        bos_token_id=words["<|endoftext|>"],
        eos_token_id=words["<|endoftext|>"],
        decoder_start_token_id=words["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.no_timestamps_token_id = words["<|notimestamps|>"]
    model.generation_config.is_multilingual = False
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    transformers.WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def speech_to_text(folder: Path) -> Path:
    """Write a Speech2Text, whose encoder takes a mask and shortens it by four."""
    tokenizer = byte_tokenizer(ends=True)
    config = transformers.Speech2TextConfig(
        **SIZES, **ENDS, vocab_size=len(tokenizer), input_feat_per_channel=8, conv_channels=16, max_target_positions=40
    )
    extractor = transformers.Speech2TextFeatureExtractor(feature_size=8, num_mel_bins=8)
    return in_parts(folder, transformers.Speech2TextForConditionalGeneration(config), extractor, tokenizer)


def moonshine(folder: Path) -> Path:
    """Write a Moonshine, which takes every 384th sample of a mask."""
    tokenizer = byte_tokenizer(ends=True)
    config = transformers.MoonshineConfig(
        **ENDS,
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False)
    return in_parts(folder, transformers.MoonshineForConditionalGeneration(config), extractor, tokenizer)


def ctc(folder: Path) -> Path:
    """Write a wav2vec 2.0 that gives every moment a letter."""
    tokenizer = byte_tokenizer()
    config = transformers.Wav2Vec2Config(
        **WAVES,
        **ENDS,
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        feat_extract_norm="layer",
        mask_time_prob=0.0,
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    return in_parts(folder, transformers.Wav2Vec2ForCTC(config), extractor, tokenizer)


def in_parts(folder: Path, model: Any, extractor: Any, tokenizer: Any) -> Path:
    for part in (model, extractor, tokenizer):
        part.save_pretrained(folder)
    return folder


def tone(seconds: float = 0.4, rate: int = RATE, pitch: float = 440.0, channels: int = 1) -> np.ndarray:
    """Return a tone (time, channels), float32, each channel half as loud as the one before."""
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave / 2**channel for channel in range(channels)], 1).astype(np.float32)


def write_tones(folder: Path, said: Mapping[str, str], **how: Any) -> Path:
    """Write a tone for every name, each a little longer and higher, and ``metadata.csv`` with what is said."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(said):
        wave = tone(0.2 + 0.07 * number, pitch=220.0 * (number + 1))
        noise = np.random.default_rng(number).normal(0, 0.01, wave.shape).astype(np.float32)
        soundfile.write(folder / name, wave + noise, RATE, **how)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "transcription"), *said.items()])
    return folder
