"""Conversations about images, as LLaVA is trained: what the assistant says of an image are its captions, and what was
said before it its prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from multiflow.data.dataset import Dataset, Pair, Skip
from multiflow.data.images import pairs_of_files
from multiflow.data.layouts import LAYOUTS, DataLayout, Place, list_of

ASSISTANT = ("gpt", "assistant", "chatgpt", "bing", "bard")
PLACE = "<image>"  # where the image stands in what was asked


class Utterance(Struct):
    """What one side says."""

    speaker: str = field(name="from")
    value: str


class Conversation(Struct):
    """A conversation, about an image or about none."""

    conversations: list[Utterance]
    image: str | None = None
    id: int | str | None = None


def _read(place: Place) -> Dataset[Pair]:
    records, prompts, skipped = [], [], []
    for number, entry in enumerate(place.as_(list[Conversation])):
        if entry.image is None:
            skipped.append(Skip(str(number if entry.id is None else entry.id), "no image"))
            continue
        turns = list(_turns(entry.conversations))
        records.append((entry.image, tuple(said for _, said in turns)))
        prompts.append(tuple(asked for asked, _ in turns))
    return pairs_of_files("LLaVA conversations", place.path, place.images, records, prompts=prompts, skipped=skipped)


def _turns(said: Iterable[Utterance]) -> Iterator[tuple[str, str]]:
    """Yield what the assistant said, after what was said to it just before."""
    before = ""
    for turn in said:
        text = turn.value.replace(PLACE, "").strip()
        if turn.speaker not in ASSISTANT:
            before = text
        elif text:
            yield before, text
            before = ""


LAYOUTS.add(
    "conversations",
    DataLayout("a JSON list of {image, conversations: [{from, value}]} (LLaVA)", list_of("conversations"), _read),
)
