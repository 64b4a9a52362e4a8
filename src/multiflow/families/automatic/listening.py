"""How a speech-to-text model of transformers listens and writes: through its own feature extractor and tokenizer.

Two manners: an encoder listens and a decoder writes (Whisper, Speech2Text, Moonshine, SpeechT5), or every moment is
given a letter (CTC: wav2vec 2.0). Sounds are resampled to the rate of the feature extractor; what fills them up is
masked where the feature extractor says so, and Whisper, which is trained on silence behind the speech, has no mask.
Labels are the ids of the transcript, -100 behind it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from multiflow.base.errors import MultiflowError
from multiflow.base.files import naming_damage
from multiflow.data.audio import Sound, check_audio
from multiflow.data.dataset import BrokenItem
from multiflow.data.examples import Spoken
from multiflow.families.automatic.processors import takes
from multiflow.families.opening import quiet_transformers

HEARD = ("input_features", "input_values", "inputs")
IGNORED = -100
MOST = 1_000_000_000
"""Of a rate or a number of samples."""
RELEASED = "give the processor of the model's release with {processor=DIR_OR_ID}"


def hears(model: Any) -> bool:
    """Tell whether a model writes what is said in a sound, and takes nothing but the sound."""
    if not takes(model, "labels") or takes(model, "input_ids", "pixel_values"):
        return False
    return writes_letters(model) or (
        takes(model, *HEARD[:2]) and takes(model, "decoder_input_ids") and model.can_generate()
    )


def writes_letters(model: Any) -> bool:
    """Tell whether a model gives every moment of a sound a letter, instead of generating (CTC)."""
    return type(model).__name__ in MODEL_FOR_CTC_MAPPING_NAMES.values()


@dataclass(frozen=True)
class Listener:
    """How a model listens; made by `listener_of`."""

    processor: Any  # of the model: with ``feature_extractor`` and ``tokenizer``
    takes: frozenset[str]  # names of the arguments of the model's forward
    letters: bool  # whether every moment gets a letter (CTC), instead of generated text
    start: int | None = None  # the token that a decoder begins with, which its model puts before the labels
    positions: int | None = None  # tokens of a transcript at most
    dtype: torch.dtype = torch.float32  # of the model's weights, to which sounds are cast

    @property
    def tokenizer(self) -> Any:
        """The tokenizer inside the processor."""
        return self.processor.tokenizer

    @property
    def rate(self) -> int:
        """Samples a second that the model listens at."""
        return int(self._number("sampling_rate"))

    @property
    def longest(self) -> float | None:
        """Seconds of a sound at most; None where any length will do."""
        if getattr(self.processor.feature_extractor, "n_samples", None) is None:
            return None
        return self._number("n_samples") / self.rate

    def _number(self, name: str) -> float:
        """Return a number that the processor's files say, which may be anything."""
        extractor = self.processor.feature_extractor
        said = getattr(extractor, name, None)
        if isinstance(said, bool) or not isinstance(said, int | float) or not 1 <= said <= MOST:
            raise MultiflowError(
                f"the {type(extractor).__name__} of the model says {name} {said!r:.40}; expected 1 to {MOST:,}; "
                f"{RELEASED}",
                field="processor",
            )
        return said

    def examples(self, examples: Sequence[Spoken]) -> dict[str, Tensor]:
        """Return a batch of sounds with their transcripts as labels, as the model's forward takes it.

        Raises:
            BrokenItem: a sound is longer than the model listens, or has no features (some models, of silence).
            MultiflowError: the processor cannot make the batch.
        """
        heard = self.sounds([of.sound for of in examples], [of.key for of in examples])
        return heard | {"labels": self.labels([of.text for of in examples])}

    def sounds(self, sounds: Sequence[Sound], keys: Sequence[str] = ()) -> dict[str, Tensor]:
        """Return a batch of sounds, for ``model.generate`` or the forward of a CTC model.

        Args:
            sounds: at any rate.
            keys: what errors call them.

        Raises:
            MultiflowError: as of `examples`, `BrokenItem` included.
        """
        named = keys or [str(number) for number in range(len(sounds))]
        for key, sound in zip(named, sounds, strict=True):
            if self.longest is not None and sound.seconds > self.longest:
                raise BrokenItem(
                    key, f"it lasts {sound.seconds:.1f} seconds, and the model listens to {self.longest:g} at once"
                )
        extractor = self.processor.feature_extractor
        usual = inspect.signature(extractor.__call__).parameters["padding"].default
        padding = usual if isinstance(usual, str) else True  # Whisper's encoder has one length
        naming = naming_damage(f"the {type(extractor).__name__} of the model makes no batch", RELEASED, "processor")
        with naming, quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how transformers itself is written
            waves = [sound.at(self.rate) for sound in sounds]
            made = extractor(waves, sampling_rate=self.rate, padding=padding, return_tensors="pt")
        found = {name: value for name, value in made.items() if name in self.takes and isinstance(value, Tensor)}
        for value in found.values():
            if value.is_floating_point() and not (fine := value.isfinite().flatten(1).all(1)).all():
                raise BrokenItem(named[int((~fine).nonzero()[0])], "its features are no finite numbers: is it silent?")
        return {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in found.items()}

    def labels(self, texts: Sequence[str]) -> Tensor:
        """Return transcripts as labels ``(texts, tokens)``, -100 behind their ends."""
        cut = {"truncation": True, "max_length": self.positions} if self.positions and not self.letters else {}
        with naming_damage(f"the {type(self.tokenizer).__name__} of the model makes no labels", RELEASED, "processor"):
            given = [self._cased(text) for text in texts]
            found = self.tokenizer(given, padding=True, padding_side="right", return_tensors="pt", **cut)
            labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, IGNORED)
        return labels[:, 1:] if self.start is not None and (labels[:, 0] == self.start).all() else labels

    def written(self, generated: Tensor) -> list[str]:
        """Return the texts of what ``model.generate`` wrote, or of the likeliest letter of every moment."""
        with naming_damage(f"the {type(self.tokenizer).__name__} of the model reads no ids", RELEASED, "processor"):
            return [text.strip() for text in self.tokenizer.batch_decode(generated, skip_special_tokens=True)]

    def _cased(self, text: str) -> str:
        """Return a text in the case of a vocabulary of letters that knows one case alone."""
        return text.upper() if self._shouts else text

    @cached_property
    def _shouts(self) -> bool:
        """Whether the vocabulary of letters is in capitals, as that of wav2vec 2.0 is."""
        known = self.tokenizer.get_vocab() if self.letters else {}
        return "A" in known and "a" not in known


def listener_of(model: Any, processor: Any) -> Listener:
    """Return how a model listens.

    Args:
        model: of transformers, of which `hears` is true.
        processor: its own, from `multiflow.families.automatic.processors.load_processor`.

    Raises:
        MultiflowError: what reads audio is not installed, or the processor lacks something.
    """
    check_audio()
    with naming_damage(f"the {type(processor).__name__} of the model cannot be used", RELEASED, "processor"):
        if processor.tokenizer.pad_token is None:
            processor = deepcopy(processor)
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        config = model.config
        decoder = getattr(config, "decoder", None) or config
        letters = writes_letters(model)
        start = None if letters else getattr(config, "decoder_start_token_id", None)
        most = None if letters else _positions(decoder)
        parameters = frozenset(inspect.signature(model.forward).parameters)
        return Listener(processor, parameters, letters, start, most, model.dtype)


def made_up_sound() -> Spoken:
    """Return a second of noise with a word that is not in it."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    return Spoken(Sound(noise, 16000), "noise", "noise")


def refuse_other(model: Any, data: Any) -> None:
    """Raise an error where a model that listens is given images, or one that does not is given speech."""
    if hears(model) != (data.kind == "clips"):
        wanted = "speech with transcripts" if hears(model) else "images, with texts where it reads them"
        raise MultiflowError(f"a {type(model).__name__} takes {wanted}, and the data are {data}; give others")


def refuse_prompt(model: Any, prompt: str | None) -> None:
    """Raise an error where a model that listens is asked something."""
    if prompt is not None:
        raise MultiflowError(
            f"{{prompt=}} was given, and a {type(model).__name__} is asked nothing: it listens; leave it out",
            field="prompt",
        )


def _positions(config: Any) -> int | None:
    """Return how many tokens a decoder may write, by its positions."""
    names = ("max_target_positions", "max_text_positions", "max_position_embeddings")
    return next((int(value) for name in names if (value := getattr(config, name, None))), None)
