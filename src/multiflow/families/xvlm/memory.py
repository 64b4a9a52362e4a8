"""What a decoder remembers from word to word, kept in the cache that transformers' ``generate`` knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from transformers import EncoderDecoderCache

KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of an attention, each ``(texts, tokens, width)``."""


@dataclass(frozen=True)
class Memory:
    """The part of the cache that belongs to one layer: the words so far, and the source that they are about."""

    cache: EncoderDecoderCache
    layer: int

    def words(self, project: Callable[[], KeyValue]) -> KeyValue:
        """Add the keys and values of the new words, and return those of all words."""
        return self.cache.self_attention_cache.update(*project(), self.layer)

    def source(self, project: Callable[[], KeyValue]) -> KeyValue:
        """Return the keys and values of the source, which are computed the first time only."""
        if not self.cache.is_updated.get(self.layer):
            self.cache.cross_attention_cache.update(*project(), self.layer)
            self.cache.is_updated[self.layer] = True
        known: Any = self.cache.cross_attention_cache.layers[self.layer]
        return known.keys, known.values
