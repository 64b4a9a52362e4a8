"""Whisper tiny.en on speech: pruned on one speaker's prompts, measured on others of them and on other speakers.

The encoder listens to ten seconds, into which every clip fits; it runs once a clip, for loss and transcript.
A transcript ends after `LONGEST` tokens, more than any clip has. What is compared is the share of words that are right,
100 (1 - errors / words) with no clip below 0, because a model that says one word again and again has a WER of hundreds;
WER itself, and the loss of a token of the right transcript, stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

import multiflow as mf
from benchmarks.real.speech import speech_folder
from benchmarks.real.whisper import END, prompt, whisper_folder
from benchmarks.real.world import Items, World
from multiflow.families.automatic.listening import IGNORED, Listener
from multiflow.families.opening import load_preprocessing, quiet_transformers
from multiflow.tasks.transcription.metric import Errors, Normalize, normalizer, rate_of, word_errors
from multiflow.tasks.transcription.task import open_speech

SECONDS = 10
LONGEST = 40  # tokens of a transcript
CALIBRATION = 32  # clips of a seed
ROWS = 16
PARTS = {"prompts": "prompts-test", "readers": "readers", "stamps": "stamps"}
LIMITS = {"prompts": 32, "stamps": 16}  # of the test clips, from all over each part
BEGINS = 1  # labels that only say how decoding begins


@dataclass(frozen=True)
class Heard:
    """A part of the test clips, as the model takes them."""

    features: Tensor  # (clips, mel bins, frames)
    labels: Tensor  # (clips, tokens), -100 behind their ends
    texts: tuple[str, ...]


def open_world(cache: Path) -> World:
    """Convert the model and write the data folders if they are not there, and open them."""
    place = str(whisper_folder(cache, SECONDS))
    model = mf.load_model(place).eval()
    listener = load_preprocessing(None, place, model).tokenizer
    parts = {
        name: hear(listener, str(speech_folder(cache, folder)), LIMITS.get(name)) for name, folder in PARTS.items()
    }
    clean = normalizer("english", ())
    return World(
        title="Whisper tiny.en",
        model=model,
        figures={f"words of {name}": "words right" for name in parts},
        batches=partial(calibration, model, str(speech_folder(cache, "prompts-calibration"))),
        evaluate=partial(evaluate, listener=listener, parts=parts, clean=clean),
        facts={"clips": {name: len(heard.texts) for name, heard in parts.items()}, "calibration clips": CALIBRATION},
    )


@lru_cache(maxsize=3)
def calibration(model: nn.Module, folder: str, seed: int) -> Sequence[Any]:
    """Return the calibration batches of a seed: which of the clips, and in which order."""
    count = CALIBRATION // ROWS
    return list(mf.calibration_batches(model, folder, batches=count, batch_size=ROWS, seed=seed))


def hear(listener: Listener, folder: str, limit: int | None = None) -> Heard:
    """Return the clips of a data folder as the model takes them; a limit takes some from all over it."""
    data = open_speech(folder, "all")
    step = 1 if limit is None else max(1, len(data) // limit)
    chosen = range(0, len(data), step)[:limit]
    clips = [data[at] for at in chosen]
    features = listener.sounds([clip.sound for clip in clips], [clip.key for clip in clips])["input_features"]
    texts = tuple(clip.text for clip in clips)
    labels = listener.labels(texts)
    labels[:, :BEGINS] = IGNORED
    return Heard(features, labels, texts)


@torch.no_grad()
def evaluate(model: Any, listener: Listener, parts: Mapping[str, Heard], clean: Normalize) -> dict[str, Items]:
    """Return the words that are right of every clip, with WER and loss, of each part."""
    found = {name: measured(*transcribe(model, listener, heard), heard, clean) for name, heard in parts.items()}
    return {f"words of {name}": items for name, items in found.items()}


def transcribe(model: Any, listener: Listener, heard: Heard) -> tuple[list[str], float]:
    """Return what the model writes of every clip, and its loss of a token of the right transcripts."""
    said: list[str] = []
    losses, tokens = 0.0, 0
    how = {"max_new_tokens": LONGEST, "pad_token_id": listener.tokenizer.pad_token_id, "do_sample": False}
    with quiet_transformers():
        for features, labels in zip(heard.features.split(ROWS), heard.labels.split(ROWS), strict=True):
            states = BaseModelOutput(last_hidden_state=model.model.encoder(features).last_hidden_state)
            logits = model(encoder_outputs=states, decoder_input_ids=shifted(labels)).logits.flatten(0, 1)
            losses += float(F.cross_entropy(logits.float(), labels.flatten(), reduction="sum", ignore_index=IGNORED))
            tokens += int((labels != IGNORED).sum())
            said += listener.written(model.generate(encoder_outputs=states, **how))
    return said, losses / tokens


def shifted(labels: Tensor) -> Tensor:
    """Return what the decoder reads while it is to say these labels."""
    rows = labels.masked_fill(labels == IGNORED, END)
    return torch.cat([prompt(len(rows)), rows[:, BEGINS:-1]], 1)


def measured(said: Sequence[str], loss: float, heard: Heard, clean: Normalize) -> Items:
    """Return the figure of a part, clip by clip; the mean of the clips is the share of all words."""
    errors = [word_errors(*pair, clean) for pair in zip(said, heard.texts, strict=True)]
    mean = fmean(of.said for of in errors)
    capped = [Errors(min(of.wrong, of.said), of.said) for of in errors]
    each = [100 * (of.said - of.wrong) / mean for of in capped]
    return Items(each, {"WER": rate_of(errors), "loss": loss})
