"""X-VLM's text tower: BERT whose layers from ``fusion_layer`` on also attend to the image.

Layers below ``fusion_layer`` see the text alone; every later layer has self-attention over the text,
cross-attention to the image, and an MLP, each followed by ``norm(dropout(dense(x)) + input)``.

The same tower decodes: its self-attention is causal then, and its later layers attend to any source, such as the states
of a question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.activations import ACT2FN

from multiflow.base.errors import MultiflowError

if TYPE_CHECKING:
    from transformers import EncoderDecoderCache


KeyValue: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of an attention, each ``(texts, tokens, width)``."""


def attend(
    query: Float[Tensor, "batch queries width"],
    key: Float[Tensor, "batch keys width"],
    value: Float[Tensor, "batch keys width"],
    heads: int,
    mask: Bool[Tensor, "batch 1 #queries keys"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch queries width"]:
    """Scaled dot-product attention over ``heads`` heads; where ``mask`` is False a key is not seen."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Memory:
    """One layer's part of the cache of transformers' ``generate``: the words so far, and the source they are about."""

    cache: EncoderDecoderCache
    layer: int

    def words(self, project: Callable[[], KeyValue]) -> KeyValue:
        return self.cache.self_attention_cache.update(*project(), self.layer)

    def source(self, project: Callable[[], KeyValue]) -> KeyValue:
        if not self.cache.is_updated.get(self.layer):
            self.cache.cross_attention_cache.update(*project(), self.layer)
            self.cache.is_updated[self.layer] = True
        known: Any = self.cache.cross_attention_cache.layers[self.layer]
        return known.keys, known.values


class Embeddings(nn.Module):
    """Words, positions and a constant token type, normalised."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes["vocab_size"], sizes["width"])
        self.position_embeddings = nn.Embedding(sizes["max_position_embeddings"], sizes["width"])
        self.token_type_embeddings = nn.Embedding(sizes["type_vocab_size"], sizes["width"])
        self.LayerNorm = nn.LayerNorm(sizes["width"], eps=sizes["layer_norm_eps"])
        self.dropout = nn.Dropout(sizes["dropout"])

    def forward(self, input_ids: Tensor, start: int = 0) -> Tensor:
        """Map token ids ``(texts, length)`` to ``(texts, length, width)``; the first one has position ``start``."""
        end, longest = start + input_ids.shape[1], self.position_embeddings.num_embeddings
        if end > longest:
            raise MultiflowError(f"input_ids has {end} tokens a text; this model takes at most {longest}")
        constant = self.position_embeddings.weight[start:end] + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + constant))


class QueryKeyValue(nn.Module):
    """The three input projections of an attention."""

    def __init__(self, width: int, source_width: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)


class Output(nn.Module):
    """Dense layer, dropout, residual, norm: how every block of BERT ends."""

    def __init__(self, in_width: int, sizes: dict[str, Any]):
        super().__init__()
        self.dense = nn.Linear(in_width, sizes["width"])
        self.dropout = nn.Dropout(sizes["dropout"])
        self.LayerNorm = nn.LayerNorm(sizes["width"], eps=sizes["layer_norm_eps"])

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map ``(..., in_width)`` to ``(..., width)``."""
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """Attention of the text to itself, or to a source such as the image."""

    def __init__(self, sizes: dict[str, Any], source_width: int):
        super().__init__()
        self.heads = sizes["heads"]
        self.dropout = sizes["dropout"]
        self.self = QueryKeyValue(sizes["width"], source_width)
        self.output = Output(sizes["width"], sizes)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        mask: Tensor | None,
        index: Tensor | None = None,
        recall: Callable[[Callable[[], KeyValue]], KeyValue] | None = None,
    ) -> Tensor:
        """Let row ``i`` of ``x`` attend to row ``index[i]`` of ``source`` (row ``i`` without an index).

        Keys and values are computed once per row of ``source``, however many texts look at it; ``recall`` may bring
        others, or do without computing them.
        """

        def project() -> KeyValue:
            key, value = self.self.key(source), self.self.value(source)
            if index is None:
                return key, value
            return key.index_select(0, index), value.index_select(0, index)  # backward is faster than of []

        key, value = project() if recall is None else recall(project)
        dropout = self.dropout if self.training else 0.0
        return self.output(attend(self.self.query(x), key, value, self.heads, mask, dropout), x)


class Intermediate(nn.Module):
    """First half of the MLP."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.dense = nn.Linear(sizes["width"], sizes["mlp"])
        self.act = ACT2FN[sizes["act"]]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to ``(..., mlp)``."""
        return self.act(self.dense(x))


class TextLayer(nn.Module):
    """One post-norm transformer layer; with ``fusion`` it also attends to the image."""

    def __init__(self, sizes: dict[str, Any], fusion: bool):
        super().__init__()
        self.attention = Attention(sizes, sizes["width"])
        self.crossattention = Attention(sizes, sizes["encoder_width"]) if fusion else None
        self.intermediate = Intermediate(sizes)
        self.output = Output(sizes["mlp"], sizes)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        image: Tensor | None = None,
        image_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Map ``(texts, length, width)`` to the same shape; a fusion layer needs the image (or another source)."""
        x = self.attention(x, x, mask, recall=memory and memory.words)
        if self.crossattention is not None:
            x = self.crossattention(x, image, image_mask, image_index, recall=memory and memory.source)
        return self.output(self.intermediate(x), x)


class TextLayers(nn.Module):
    """The stack of layers, under the name that the release gives it."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        first = sizes["fusion_layer"]
        self.layer = nn.ModuleList(TextLayer(sizes, fusion=i >= first) for i in range(sizes["layers"]))


class Bert(nn.Module):
    """Embeddings, text layers and fusion layers.

    Args:
        sizes: the ``text`` part of `XVLMConfig`.
    """

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.fusion_layer = sizes["fusion_layer"]
        self.embeddings = Embeddings(sizes)
        self.encoder = TextLayers(sizes)

    def encode(
        self, input_ids: Int[Tensor, "texts length"], attention_mask: Int[Tensor, "texts length"]
    ) -> Float[Tensor, "texts length width"]:
        x, mask = self.embeddings(input_ids), key_mask(attention_mask)
        for layer in self.encoder.layer[: self.fusion_layer]:
            x = layer(x, mask)
        return x

    def fuse(
        self,
        x: Float[Tensor, "texts length width"],
        attention_mask: Int[Tensor, "texts length"],
        image_embeds: Float[Tensor, "images tokens image_width"],
        image_mask: Int[Tensor, "images tokens"] | None = None,
        image_index: Int[Tensor, " texts"] | None = None,
    ) -> Float[Tensor, "texts length width"]:
        """Run the fusion layers: text ``i`` attends to image ``image_index[i]``, or to image ``i`` without an index."""
        mask = key_mask(attention_mask)
        if image_mask is not None:
            image_mask = key_mask(image_mask if image_index is None else image_mask.index_select(0, image_index))
        for layer in self.encoder.layer[self.fusion_layer :]:
            x = layer(x, mask, image_embeds, image_mask, image_index)
        return x

    def decode(
        self,
        input_ids: Int[Tensor, "texts length"],
        attention_mask: Int[Tensor, "texts all"] | None,
        source: Float[Tensor, "rows tokens source_width"],
        source_mask: Int[Tensor, "rows tokens"] | None = None,
        source_index: Int[Tensor, " texts"] | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Float[Tensor, "texts length width"]:
        """Run all layers causally; those from ``fusion_layer`` on attend to the source, text ``i`` to row ``i``.

        Args:
            input_ids: the words, with a cache only the new ones.
            attention_mask: which words are real (1), those in the cache included; None = all.
            source: what the text is about, such as the states of an image or of a question.
            source_mask: which of its tokens are real.
            source_index: the row of the source that each text attends to.
            cache: of an earlier call with the words before these; it is added to.
        """
        past = 0 if cache is None else cache.get_seq_length()
        x = self.embeddings(input_ids, past)
        mask = torch.ones(1, 1, x.shape[1], past + x.shape[1], dtype=torch.bool, device=x.device).tril(past)
        if attention_mask is not None:
            mask = mask & key_mask(attention_mask)
        if source_mask is not None:
            source_mask = key_mask(source_mask if source_index is None else source_mask.index_select(0, source_index))
        for i, layer in enumerate(self.encoder.layer):
            memory = None if cache is None else Memory(cache, i)
            x = layer(x, mask, source, source_mask, source_index, memory)
        return x


def key_mask(mask: Int[Tensor, "rows keys"]) -> Bool[Tensor, "rows 1 1 keys"]:
    """Shape a 0/1 mask so that it broadcasts over heads and queries."""
    return mask.bool()[:, None, None]


class Transform(nn.Module):
    """Dense layer, activation and norm before the vocabulary."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.dense = nn.Linear(sizes["width"], sizes["width"])
        self.act = ACT2FN[sizes["act"]]
        self.LayerNorm = nn.LayerNorm(sizes["width"], eps=sizes["layer_norm_eps"])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to the same shape."""
        return self.LayerNorm(self.act(self.dense(x)))


class Predictions(nn.Module):
    """Hidden states to vocabulary logits; the decoder's weight is that of the word embeddings."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.transform = Transform(sizes)
        self.decoder = nn.Linear(sizes["width"], sizes["vocab_size"])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to ``(..., vocab_size)``."""
        return self.decoder(self.transform(x))


class MLMHead(nn.Module):
    """The predictions, under the name that the release gives them."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.predictions = Predictions(sizes)


class TextEncoder(nn.Module):
    """BERT and its head over the vocabulary, which tells masked words or, where the tower decodes, the next ones.

    Args:
        sizes: the ``text`` part of `XVLMConfig`.
        head: whether there is one.
    """

    def __init__(self, sizes: dict[str, Any], head: bool = True):
        super().__init__()
        self.bert = Bert(sizes)
        if head:
            self.cls = MLMHead(sizes)

    def predict(
        self, x: Float[Tensor, "texts length width"], positions: Int[Tensor, "texts slots"]
    ) -> Float[Tensor, "texts slots vocab"]:
        rows = torch.arange(len(x), device=x.device)[:, None]
        return self.cls.predictions(x[rows, positions])
