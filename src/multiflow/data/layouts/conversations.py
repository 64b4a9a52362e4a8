"""Conversations about images, as LLaVA is trained: what the assistant says of an image are its captions."""

from __future__ import annotations

from msgspec import Struct, field

from multiflow.data.dataset import Dataset, Pair, Skip
from multiflow.data.files import pairs_of_files, texts_of
from multiflow.data.layouts import LAYOUTS, DataLayout, Place

ASSISTANT = ("gpt", "assistant")


class Utterance(Struct):
    """What one side says."""

    speaker: str = field(name="from")
    value: str


class Conversation(Struct):
    """A conversation, about an image or about none."""

    conversations: list[Utterance]
    image: str | None = None
    id: int | str | None = None


def _recognise(place: Place) -> bool:
    match place.content:
        case [{"conversations": _}, *_]:
            return True
    return False


def _read(place: Place) -> Dataset[Pair]:
    records = []
    skipped = []
    for number, entry in enumerate(place.as_(list[Conversation])):
        said = texts_of([turn.value for turn in entry.conversations if turn.speaker in ASSISTANT])
        if entry.image is None:
            skipped.append(Skip(str(number if entry.id is None else entry.id), "no image"))
        else:
            records.append((entry.image, said))
    return pairs_of_files("LLaVA conversations", place.path, place.images, records, skipped=skipped)


LAYOUTS.add(
    "conversations",
    DataLayout("a JSON list of {image, conversations: [{from, value}]} (LLaVA)", _recognise, _read),
)
