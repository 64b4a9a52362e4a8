"""Masked language modelling as X-VLM does it (arXiv 2111.08276), vectorised over the batch.

``n = min(limit, max(1, round(rate * tokens)))`` tokens of a text are hidden. Start positions are visited in random
order; with probability ``skip_gram`` a start covers 2 to ``skip_size`` tokens, else one; every word it touches is
hidden whole. Of the hidden tokens 80 % become [MASK], 10 % a random word, 10 % stay (BERT, arXiv 1810.04805).
The published code cuts a word in two where it would exceed ``n``; here that word is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.data.seeds import Stream, random_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""Label of an unused slot."""


def mask_tokens(
    ids: np.ndarray,
    attention: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    position: int,
    stream: Stream = Stream.MLM,
    rate: float = 0.25,
    limit: int = 8,
    skip_gram: float = 0.2,
    skip_size: int = 3,
) -> dict[str, np.ndarray]:
    """Hide tokens of each text: a pure function of the texts, the seed and the position.

    Args:
        ids: token ids (texts, length).
        attention: 1 for tokens, 0 for padding, (texts, length).
        tokenizer: knows the special tokens and which pieces continue a word (``##``).
        seed: seed of the run.
        position: number of the batch in the run.
        stream: which of the independent random streams to draw from.
        rate: share of the tokens to hide, [CLS] counted.
        limit: hidden tokens at most.
        skip_gram: probability that several neighbours are hidden together.
        skip_size: how many at most.

    Returns:
        ``mlm_input_ids`` (texts, length), ``mlm_positions`` and ``mlm_labels`` (texts, slots) in rising positions;
        unused slots have position 0 and label -100.
    """
    vocabulary = _vocabulary(tokenizer, len(tokenizer))
    rng = random_at(seed, stream, position)
    chosen = _choose(ids, attention.astype(bool), vocabulary, rng, rate, limit, skip_gram, skip_size)

    fate = rng.random(ids.shape)
    words = vocabulary.ordinary[rng.integers(len(vocabulary.ordinary), size=ids.shape)]
    masked = np.where(chosen & (fate < 0.8), vocabulary.mask, np.where(chosen & (fate < 0.9), words, ids))

    counts = chosen.sum(1)
    slots = max(1, int(counts.max(initial=0)))
    used = np.arange(slots) < counts[:, None]
    positions = np.where(used, np.argsort(~chosen, axis=1, kind="stable")[:, :slots], 0)
    labels = np.where(used, np.take_along_axis(ids, positions, 1), IGNORE)
    return {"mlm_input_ids": masked, "mlm_positions": positions, "mlm_labels": labels}


def _choose(
    ids: np.ndarray,
    attention: np.ndarray,
    vocabulary: _Vocabulary,
    rng: np.random.Generator,
    rate: float,
    limit: int,
    skip_gram: float,
    skip_size: int,
) -> np.ndarray:
    """Return which tokens to hide, bool (texts, length)."""
    budget = np.clip(np.rint(attention.sum(1) * rate), 1, limit).astype(np.int64)
    free = attention & ~vocabulary.special[ids]
    continued = np.zeros_like(free)
    continued[:, 1:] = vocabulary.continues[ids[:, 1:]] & free[:, :-1]
    word = np.cumsum(free & ~continued, axis=1) - 1  # (texts, length): number of the word that a token is part of

    # When is a token first covered? At the earliest turn among the starts whose reach it lies in.
    turn = rng.random(ids.shape)
    reach = np.where(rng.random(ids.shape) < skip_gram, rng.integers(2, max(3, skip_size + 1), ids.shape), 1)
    covered = np.where(free, turn, np.inf)
    for step in range(1, skip_size):
        before = np.where(free[:, :-step] & (reach[:, :-step] > step), turn[:, :-step], np.inf)
        covered[:, step:] = np.minimum(covered[:, step:], before)
    rows, columns = np.nonzero(free)
    first = np.full(ids.shape, np.inf)  # (texts, words)
    np.minimum.at(first, (rows, word[rows, columns]), covered[rows, columns])
    pieces = np.zeros(ids.shape, np.int64)
    np.add.at(pieces, (rows, word[rows, columns]), 1)

    # Words in the order of their turn, each taken if it still fits.
    order = np.argsort(first, axis=1, kind="stable")
    in_order = np.take_along_axis(pieces, order, 1)
    taken = np.zeros(ids.shape, bool)
    left = budget.copy()
    for rank in range(int((pieces > 0).sum(1).max(initial=0))):
        fits = (in_order[:, rank] > 0) & (in_order[:, rank] <= left)
        taken[:, rank] = fits
        left -= np.where(fits, in_order[:, rank], 0)
        if not left.any():
            break
    taken[:, :1] |= ~taken.any(1, keepdims=True)  # no word is short enough: the first pieces of one word
    by_word = np.zeros(ids.shape, bool)
    np.put_along_axis(by_word, order, taken, 1)
    chosen = free & np.take_along_axis(by_word, np.maximum(word, 0), 1)
    return chosen & (np.cumsum(chosen, axis=1) <= budget[:, None])


@dataclass(frozen=True)
class _Vocabulary:
    """What masking must know of a tokenizer, as arrays over token ids."""

    mask: int
    special: np.ndarray  # never hidden: [PAD], [CLS], [SEP], [MASK]
    continues: np.ndarray  # pieces that continue a word
    ordinary: np.ndarray  # ids that may stand in for a hidden token


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> _Vocabulary:
    """Read the tables off a tokenizer once; `size` renews them when tokens were added."""
    if tokenizer.mask_token_id is None:
        raise MultiflowError(f"the tokenizer {type(tokenizer).__name__} has no mask token; MLM needs one")
    ids_of = tokenizer.get_vocab()
    length = max(ids_of.values()) + 1
    special, continues = np.zeros(length, bool), np.zeros(length, bool)
    for name in ("pad", "cls", "sep", "mask"):
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            special[index] = True
    continues[[index for token, index in ids_of.items() if token.startswith("##")]] = True
    ordinary = np.setdiff1d(np.fromiter(ids_of.values(), np.int64), tokenizer.all_special_ids)
    return _Vocabulary(tokenizer.mask_token_id, special, continues, ordinary)
