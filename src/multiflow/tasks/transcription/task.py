"""Transcription: a model writes what is said in a sound, greedily, and is measured by word error rate."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from multiflow.base.files import write_atomically
from multiflow.calibration import evaluating
from multiflow.data.audio import check_audio
from multiflow.data.dataset import BrokenItem, Clip, Skip
from multiflow.data.examples import Spoken
from multiflow.data.items import TaskData, open_items, refuse_broken
from multiflow.families.automatic.listening import Listener
from multiflow.families.automatic.tasks import refuse_unable
from multiflow.tasks.inputs import leaving_none_out, make_samples, samples_at
from multiflow.tasks.read import Progress, on_device, read_loss
from multiflow.tasks.task import Figures, Task
from multiflow.tasks.transcription.metric import character_errors, normalizer, rate_of, word_errors

LONGEST = 200  # tokens of a transcript
BEGINNING = 4  # tokens at most that a decoder is given to begin with: language, task, no times
TRANSCRIPTS = "transcripts.csv"


@dataclass(frozen=True)
class SpeechInputs:
    """How the training batches are made."""

    reader: Listener
    seed: int = 0  # of the order


def speech_inputs(model: Any, reader: Listener, *, seed: int = 0, **images: Any) -> SpeechInputs:
    """Return how training batches are made; sounds are never augmented."""
    return SpeechInputs(reader, seed)


def speech_samples(data: TaskData, inputs: SpeechInputs, batch_size: int, position: int) -> dict[str, Any]:
    """Return sounds with their transcripts, as the model's forward takes them."""

    def make(number: int, index: int) -> Spoken:
        clip: Clip = data[index]
        return Spoken(clip.sound, clip.text, clip.key)

    return inputs.reader.examples(make_samples(make, samples_at(len(data), inputs, batch_size, position)))


def open_speech(source: str | Path, split: str | None, *, skip_missing: bool = False, **options: Any) -> TaskData:
    """Open speech with transcripts, see `open_items`.

    With ``skip_missing``, every sound is read once: those that cannot be are left out too.
    """
    check_audio()
    data = open_items("transcription", "clips", source, split, skip_missing=skip_missing, **options)
    return _readable(data) if skip_missing else data


def _readable(data: TaskData) -> TaskData:
    broken: dict[int, Skip] = {}
    for at in range(len(data)):
        try:
            data[at]
        except BrokenItem as error:
            broken[at] = error.skip
    good = [at for at in range(len(data)) if at not in broken]
    skipped = (*data.skipped, *broken.values())
    refuse_broken(skipped, len(good), data.source, allowed=True)
    items, texts = [data.items[at] for at in good], tuple(data.texts[at] for at in good)
    return replace(data, items=items, texts=texts, skipped=skipped)


def evaluate_transcription(
    model: Any,
    reader: Listener,
    data: TaskData,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    save: str | Path | None = None,
    max_new_tokens: int | None = None,
    normalize: str | None = None,
    **pixels: Any,
) -> Figures:
    """Transcribe every sound and count the errors; see `Task.evaluate`.

    Args:
        model: one that listens.
        reader: how it listens.
        data: clips.
        batch_size: clips at once.
        progress: called with (clips done, clips in all).
        save: folder that gets ``transcripts.csv``: clip, what was said, what was written, errors and words.
        max_new_tokens: tokens of a transcript at most.
        normalize: ``english``, ``basic`` or ``none``, see `multiflow.tasks.transcription.metric`.
        pixels: not used.

    Returns:
        ``word accuracy`` (100 - WER), ``WER`` and ``CER``. ``each`` is what each clip brings into the word accuracy:
        100 (1 - errors / mean number of words), which is negative where more is made up than was said.

    Raises:
        MultiflowError: the model does not listen, or a sound cannot be read or is too long.
    """
    refuse_unable(model, "transcription")
    references = [texts[0] for texts in data.texts]
    clean = normalizer(normalize, references, getattr(reader.tokenizer, "english_spelling_normalizer", None))
    keys, said = [], []
    for clips, texts in transcribed(model, reader, data, batch_size, max_new_tokens, progress):
        keys += [clip.key for clip in clips]
        said += texts
    pairs = list(zip(said, references, strict=True))
    words = [word_errors(*pair, clean) for pair in pairs]
    if save is not None:
        rows = [(key, *pair[::-1], *of) for key, pair, of in zip(keys, pairs, words, strict=True)]
        write_transcripts(Path(save) / TRANSCRIPTS, rows)
    mean = max(fmean(of.said for of in words), 1e-9)
    wer, cer = rate_of(words), rate_of([character_errors(*pair, clean) for pair in pairs])
    figures = {"word accuracy": 100 - wer, "WER": wer, "CER": cer}
    return Figures(figures, [100 * (1 - of.wrong / mean) for of in words], said)


@torch.no_grad()
def transcribed(
    model: Any,
    reader: Listener,
    data: TaskData,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[list[Clip], list[str]]]:
    """Yield clips and what the model writes of them, a batch at a time; arguments as of `evaluate_transcription`."""
    room = LONGEST if reader.positions is None else max(1, min(LONGEST, reader.positions - BEGINNING))
    with evaluating(model):
        for first in range(0, len(data), batch_size):
            with leaving_none_out(data):
                clips: list[Clip] = [data[at] for at in range(first, min(first + batch_size, len(data)))]
                batch = reader.sounds([clip.sound for clip in clips], [clip.key for clip in clips])
            batch = on_device(batch, model)
            if reader.letters:
                found = model(**batch).logits.argmax(-1)
            else:
                how = {"max_new_tokens": min(room, max_new_tokens or room), "num_beams": 1, "do_sample": False}
                found = model.generate(**batch, **how, pad_token_id=reader.tokenizer.pad_token_id)
            yield clips, reader.written(found)
            if progress is not None:
                progress(first + len(clips), len(data))


def write_transcripts(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write a table of clip, what was said, what was written, errors and words."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["clip", "said", "written", "errors", "words"])
    table.writerows(rows)
    write_atomically(path, text.getvalue())


TASK = Task(
    name="transcription",
    open=open_speech,
    options=lambda data: {},
    inputs=speech_inputs,
    batch=speech_samples,
    loss=read_loss,
    evaluate=evaluate_transcription,
    main="word accuracy",
    best="word accuracy",
)
TASK = replace(TASK, by_processor=TASK)
