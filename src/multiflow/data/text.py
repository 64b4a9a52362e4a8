"""Tokenizers, token ids of texts, and masked language modelling.

Texts become [CLS] and their words, for BLIP also [SEP], padded to the longest. Tokens are hidden as X-VLM does it
(arXiv 2111.08276), vectorised over the batch: ``n = min(limit, max(1, round(rate * tokens)))`` of a text. Start
positions are visited in random order; with probability ``skip_gram`` a start covers 2 to ``skip_size`` tokens, else
one; every word it touches is hidden whole. Of the hidden tokens 80 % become [MASK], 10 % a random word, 10 % stay
(BERT, arXiv 1810.04805). The published code cuts a word in two where it would exceed ``n``; here that word is passed
over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.base.files import check_files, exists, is_damage, shortened
from multiflow.base.hub import reach_hub
from multiflow.data.sampling import Stream, random_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
DEFAULT_TOKENIZER = "bert-base-uncased"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "tokenizer_config.json")
UNPAIRED = re.compile("[\ud800-\udfff]")  # half of a character
IGNORE = -100
"""Label of an unused slot."""


def load_tokenizer(source: str | Path = DEFAULT_TOKENIZER) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, the local Hugging Face cache or, failing both, the Hub.

    Errors: MultiflowError that names the ``--tokenizer`` option when there is none, when its files are damaged, or when
    it lacks [CLS], [PAD] or [MASK].
    """
    from transformers import AutoTokenizer

    on_disk = exists(source) or looks_like_path(str(source))
    reason: BaseException | None = None
    held = check_files(source, TOKENIZER_FILES, "tokenizer")
    for local in (True,) if on_disk else (True, False):
        try:
            if not local:
                reach_hub(str(source))
            tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=local, trust_remote_code=False)
            _check_tokenizer(tokenizer, source)
            return tokenizer
        except MultiflowError:
            raise
        except BaseException as error:  # the tokenizers library panics with an exception that is no Exception
            if not is_damage(error):
                raise
            reason = error
    if held:
        raise MultiflowError(
            f"the tokenizer in '{source}' cannot be read ({shortened(reason)}); copy its files again: {', '.join(held)}"
        ) from reason
    raise MultiflowError(
        f"no tokenizer found at '{source}' on this disk{'' if on_disk else ', nor on the Hugging Face Hub from here'}; "
        "give a folder that holds one (tokenizer.json or vocab.txt) with {tokenizer=DIR_OR_ID}",
        field="tokenizer",
    ) from reason


def token_count(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many embeddings the ids of a tokenizer need: one more than the highest."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Refuse a tokenizer that lacks a token, or whose files do not fit each other."""
    special = {n: getattr(tokenizer, f"{n}_id", None) for n in ("cls_token", "pad_token", "mask_token")}
    if lacking := [name for name, index in special.items() if index is None]:
        raise MultiflowError(f"the tokenizer '{source}' has no {' and no '.join(lacking)}; give a BERT tokenizer")
    count, words = token_count(tokenizer), len(tokenizer)
    if not 0 < count <= 2 * words + 1024:
        raise ValueError(f"its {words} tokens have numbers up to {count - 1}")
    ids, _ = encode_texts(tokenizer, ["a photo, perhaps"])
    used = [*ids.ravel().tolist(), *special.values()]
    if not all(isinstance(index, int) and 0 <= index < count for index in used):
        raise ValueError(f"it gives the ids {used}, and has {count}")


def build_word_tokenizer(vocabulary: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer for a closed vocabulary: lower case, punctuation split off, one token a word.

    Args:
        vocabulary: words or whole texts; tokens are numbered in the order of their first appearance, after [PAD],
            [UNK], [CLS], [SEP] and [MASK] (0 to 4).

    Save it with ``save_pretrained(folder)``; `load_tokenizer` reads it back.

    >>> tokenizer = build_word_tokenizer(["a red square", "top-left"])
    >>> tokenizer.convert_ids_to_tokens(tokenizer("A square, top-left")["input_ids"])
    ['[CLS]', 'a', 'square', '[UNK]', 'top', '-', 'left', '[SEP]']
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    tokens = dict.fromkeys(SPECIAL_TOKENS.values())
    for text in vocabulary:
        tokens.update(dict.fromkeys(w for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))))
    if len(tokens) == len(SPECIAL_TOKENS):
        raise MultiflowError("the vocabulary of the tokenizer is empty; give its words, such as ['a', 'red', 'square']")
    ids = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS["unk_token"]))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=[(t, ids[t]) for t in (cls, sep)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int = 40, end: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and attention mask, both (texts, longest) int64.

    Args:
        tokenizer: any tokenizer with a [CLS] and a [PAD] token.
        texts: the captions.
        max_length: tokens at most, [CLS] and [SEP] counted.
        end: whether each text ends with [SEP], as BLIP's do.
    """
    around = 2 if end else 1
    if max_length <= around:
        raise MultiflowError(
            f"max_length {max_length} was given; expected at least {around + 1}: [CLS]{', [SEP]' if end else ''} "
            "and one token"
        )
    wrong = next((text for text in texts if not isinstance(text, str) or UNPAIRED.search(text)), None)
    if wrong is not None:
        raise MultiflowError(f"a caption is {wrong!r} ({type(wrong).__name__}); expected a string of whole characters")
    words = tokenizer(
        list(texts),
        add_special_tokens=False,
        truncation=True,
        max_length=max_length - around,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"] if len(texts) else []  # fmt: skip
    if end:
        words = [[*ids, tokenizer.sep_token_id] for ids in words]
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    attention = np.arange(1 + lengths.max(initial=0)) < 1 + lengths[:, None]
    ids = np.full(attention.shape, tokenizer.pad_token_id, np.int64)
    ids[:, :1] = tokenizer.cls_token_id
    ids[:, 1:][attention[:, 1:]] = np.concatenate(words) if lengths.any() else 0
    return ids, attention.astype(np.int64)


def looks_like_path(source: str) -> bool:
    """Whether a name is a path on the disk rather than a Hub id (``name`` or ``owner/name``)."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source


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
