"""Conversations about images, as LLaVA is trained: what the assistant says of an image are its captions, and what was
said before it its prompts.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, field

from multiflow.data.dataset import Dataset, Pair, Skip
from multiflow.data.images import pairs_of_files
from multiflow.data.layouts import LAYOUTS, DataLayout, Place, list_of
from multiflow.data.tables import turns_of


class Utterance(Struct):
    """What one side says."""

    speaker: str = field(name="from")
    value: str


class MessagePart(Struct):
    """A part of a message: a text, or the place of an image."""

    type: str
    text: str | None = None


class Message(Struct):
    """What one side says, in the form of chat templates."""

    role: str
    content: str | list[MessagePart]


class Conversation(Struct):
    """A conversation, about an image or about none."""

    conversations: list[Utterance] | None = None
    messages: list[Message] | None = None
    image: str | list[str] | None = None
    images: list[str] | None = None
    id: int | str | None = None


def _read(place: Place) -> Dataset[Pair]:
    records, prompts, skipped = [], [], []
    for number, entry in enumerate(place.as_(list[Conversation])):
        named = entry.images or ([entry.image] if isinstance(entry.image, str) else entry.image) or []
        if len(named) != 1:
            what = "no image" if not named else f"it has {len(named)} images"
            skipped.append(Skip(str(number if entry.id is None else entry.id), what))
            continue
        turns = list(turns_of(_said(entry)))
        records.append((named[0], tuple(said for _, said in turns)))
        prompts.append(tuple(asked for asked, _ in turns))
    return pairs_of_files("conversations", place.path, place.images, records, prompts=prompts, skipped=skipped)


def _said(entry: Conversation) -> Iterator[tuple[str, str]]:
    """Yield who says what."""
    for turn in entry.conversations or ():
        yield turn.speaker, turn.value
    for message in entry.messages or ():
        parts = message.content if isinstance(message.content, list) else [MessagePart("text", message.content)]
        yield message.role, "\n".join(part.text for part in parts if part.text)


LAYOUTS.add(
    "conversations",
    DataLayout(
        "a JSON list of {image, conversations: [{from, value}]} (LLaVA) or {images, messages: [{role, content}]}",
        list_of("conversations", "messages"),
        _read,
    ),
)
