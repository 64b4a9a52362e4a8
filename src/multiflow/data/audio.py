"""Audio files to samples: one channel, float32, at the rate that a model listens at.

soundfile decodes, soxr resamples (the extra ``audio``). Whole numbers of any width become [-1, 1), channels their mean.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from multiflow.base.errors import MultiflowError
from multiflow.base.files import files_in, read_regular
from multiflow.base.guards import raise_shortage
from multiflow.data.dataset import BrokenItem

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"})
MOST_BYTES = 2**29
"""Bytes of an audio file at most."""

MOST_SAMPLES = 2**27
"""Samples of all channels together at most: decoded they take half a gigabyte."""

LOWEST_RATE, MOST_SECONDS = 1000, 10_800
"""Samples a second at least, and seconds at most: what a header may say before a sound is resampled."""

LIBRARIES = "soundfile", "soxr"


@dataclass(frozen=True, slots=True)
class Sound:
    """What a file sounds like.

    >>> Sound(np.zeros(8000, np.float32), 8000).at(16000).shape
    (16000,)
    """

    samples: Float[np.ndarray, " time"]  # mean of the channels, whole numbers as [-1, 1)
    rate: int  # samples a second

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate

    def at(self, rate: int) -> Float[np.ndarray, " time"]:
        """Return its samples at another rate, in samples a second."""
        if rate == self.rate:
            return self.samples
        return np.ascontiguousarray(_library("soxr").resample(self.samples, self.rate, rate), np.float32)


def is_audio(name: str) -> bool:
    """Tell whether a file is one of sound, by the ending of its name."""
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def audio_files(folder: Path) -> list[str]:
    """Return the names of the audio files in a folder, in order."""
    return sorted(files_in(folder, is_audio))


def load_sound(path: str | Path, key: str) -> Sound:
    """Read an audio file.

    Args:
        path: of the file.
        key: what errors call it.

    Raises:
        BrokenItem: it cannot be read, is no sound, holds none, is too large, or has samples that are no numbers.
        MultiflowError: soundfile or soxr is not installed.
    """
    try:
        data = read_regular(path, MOST_BYTES)
    except OSError as error:
        raise BrokenItem(key, error.strerror or str(error)) from error
    return decode_sound(data, key)


def decode_sound(data: bytes, key: str) -> Sound:
    """Decode the bytes of an audio file, see `load_sound`."""
    library = _library("soundfile")
    if not data:
        raise BrokenItem(key, "the file is empty")
    try:
        with library.SoundFile(io.BytesIO(data)) as file:
            if file.frames * file.channels > MOST_SAMPLES:
                raise BrokenItem(key, f"it has {file.frames} samples of {file.channels} channels, too many to read")
            samples, rate = file.read(dtype="float32", always_2d=True), int(file.samplerate)
    except BrokenItem:
        raise
    except Exception as error:  # of altered bytes libsndfile raises anything
        raise_shortage(error, len(data))
        said = re.sub(r"(Error opening )?<_io\.BytesIO[^>]*>: ", "", " ".join(str(error).split()))
        raise BrokenItem(key, f"not an audio file that can be read ({said[:120]})") from error
    if _is_cut(data):
        raise BrokenItem(key, "it is cut off: its header tells of more than there is")
    if not samples.size:
        raise BrokenItem(key, "it holds no sound")
    if rate < LOWEST_RATE or len(samples) > MOST_SECONDS * rate:
        raise BrokenItem(key, f"{len(samples)} samples at {rate} a second are no speech: is its header damaged?")
    if not np.isfinite(samples).all():
        raise BrokenItem(key, "it has samples that are no finite numbers")
    return Sound(np.ascontiguousarray(samples.mean(1)), rate)


def _is_cut(data: bytes) -> bool:
    """Whether a file ends before its header says: what is left would not go with its transcript.

    Writers that cannot go back leave a size of all ones or nearly so; some count the header, eight bytes, twice. The
    last page of an Ogg stream says that it is the last.
    """
    kind, said, unknown = data[:4], 0, 0x7FFFF000
    if kind in (b"RIFF", b"FORM", b"RIFX"):
        said = int.from_bytes(data[4:8], "little" if kind == b"RIFF" else "big")
    elif kind == b"RF64":
        said = int.from_bytes(data[20:28], "little")
    elif kind == b".snd":
        said = sum(int.from_bytes(data[at : at + 4], "big") for at in (4, 8))
    elif kind == b"OggS":
        flags = data[data.rfind(kind) + 5 :][:1] or b"\0"
        return not flags[0] & 4
    return said < unknown and said > len(data)


def check_audio() -> None:
    """Raise an error where what reads audio is not installed.

    Raises:
        MultiflowError: soundfile or soxr is missing.
    """
    for name in LIBRARIES:
        _library(name)


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MultiflowError(
            f"audio is read with {' and '.join(LIBRARIES)}, and {name} is not installed; install them with "
            "'pip install multiflow-pruning[audio]'"
        ) from error
