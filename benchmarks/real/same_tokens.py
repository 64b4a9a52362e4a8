"""Whether the converted Whisper writes the tokens that CTranslate2 writes with the model as it was published.

    python -m benchmarks.real.same_tokens [--cache DIR] [--seconds 10] [--parts readers ...]

Both get the same features and decode greedily from the same two tokens. Needs ctranslate2 (the extra ``real``). The
figures go into benchmarks/results/real_same_tokens.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

import multiflow as mf
from benchmarks.real.fetch import default_cache, folder
from benchmarks.real.speech import READERS, speech_folder
from benchmarks.real.whisper import END, INSIDE, NO_TIMESTAMPS, PACKAGE, START, whisper_folder
from multiflow.base.errors import MultiflowError
from multiflow.base.files import write_atomically
from multiflow.families.opening import load_preprocessing, quiet_transformers
from multiflow.tasks.transcription.task import open_speech

RESULTS = Path(__file__).parents[1] / "results" / "real_same_tokens.json"
MOST = 100  # tokens of a clip that are compared
ROWS = 16


def of_ctranslate2(place: Path, features: np.ndarray) -> list[list[int]]:
    """Return what CTranslate2 writes of features ``(clips, mel bins, frames)``, in float32."""
    try:
        import ctranslate2
    except ImportError as error:
        raise MultiflowError("ctranslate2 is not installed; install it with 'pip install ctranslate2'") from error
    model = ctranslate2.models.Whisper(str(place), compute_type="float32", intra_threads=1)
    said: list[list[int]] = []
    for rows in np.split(features, range(ROWS, len(features), ROWS)):
        given = ctranslate2.StorageView.from_array(np.ascontiguousarray(rows))
        found = model.generate(given, [[START, NO_TIMESTAMPS]] * len(rows), beam_size=1, max_length=2 * MOST)
        said += [one.sequences_ids[0][:MOST] for one in found]
    return said


@torch.no_grad()
def of_transformers(model: torch.nn.Module, features: np.ndarray) -> list[list[int]]:
    """Return what the converted model writes of the same features."""
    said: list[list[int]] = []
    for rows in torch.from_numpy(features).split(ROWS):
        with quiet_transformers():
            made = model.generate(input_features=rows, max_new_tokens=MOST, do_sample=False)  # type: ignore[operator]
        said += [list(takewhile_not(row, END))[:MOST] for row in made.tolist()]
    return said


def takewhile_not(tokens: Sequence[int], end: int) -> Iterator[int]:
    """Yield the tokens behind those that decoding begins with, up to the end."""
    for token in tokens[2:] if tokens[:2] == [START, NO_TIMESTAMPS] else tokens:
        if token == end:
            return
        yield token


def compare(cache: Path, parts: Sequence[str], seconds: int) -> dict[str, dict[str, int]]:
    """Return for each part how many clips and tokens there are, and in how many clips both write the same."""
    place = str(whisper_folder(cache, seconds))
    model = mf.load_model(place).eval()
    listener = load_preprocessing(None, place, model).tokenizer
    source = folder(cache, PACKAGE) / INSIDE
    found = {}
    for part in parts:
        clips = list(open_speech(str(speech_folder(cache, part)), "all"))
        features = listener.sounds([clip.sound for clip in clips])["input_features"].numpy()
        ours, theirs = of_transformers(model, features), of_ctranslate2(source, features)
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        found[part] = {"clips": len(clips), "same": same, "tokens": sum(map(len, theirs))}
        print(f"{part}: {same} of {len(clips)} clips, {found[part]['tokens']} tokens", flush=True)
        for clip, a, b in zip(clips, ours, theirs, strict=True):
            if a != b:
                print(f"  {clip.key}: {listener.tokenizer.decode(a)} | {listener.tokenizer.decode(b)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--seconds", type=int, default=10, help="that the encoder listens to")
    parser.add_argument("--parts", nargs="+", default=list(READERS), choices=list(READERS))
    given = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for part in given.parts:
        found = compare(given.cache.expanduser(), [part], given.seconds)
        known.setdefault(f"{given.seconds} s", {}).update(found)
        write_atomically(RESULTS, json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
