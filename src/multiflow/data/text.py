"""Tokenizers and the token form of batches: [CLS] and the words, for BLIP also [SEP], padded to the longest text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from multiflow.base.errors import MultiflowError
from multiflow.base.hub import reach_hub

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


def load_tokenizer(source: str | Path = DEFAULT_TOKENIZER) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, the local Hugging Face cache or, failing both, the Hub.

    Errors: MultiflowError that names the ``--tokenizer`` option when there is none, or when it lacks [CLS], [PAD] or
    [MASK].
    """
    from transformers import AutoTokenizer

    on_disk = Path(source).exists() or _looks_like_path(str(source))
    reason: Exception | None = None
    for local in (True,) if on_disk else (True, False):
        try:
            if not local:
                reach_hub(str(source))
            tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=local)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = error
            continue
        lacking = [n for n in ("cls_token", "pad_token", "mask_token") if getattr(tokenizer, f"{n}_id", None) is None]
        if lacking:
            raise MultiflowError(f"the tokenizer '{source}' has no {' and no '.join(lacking)}; give a BERT tokenizer")
        return tokenizer
    raise MultiflowError(
        f"no tokenizer found at '{source}' on this disk{'' if on_disk else ', nor on the Hugging Face Hub from here'}; "
        "give a folder that holds one (tokenizer.json or vocab.txt) with --tokenizer DIR_OR_ID"
    ) from reason


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
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise MultiflowError(f"a caption is {wrong!r} ({type(wrong).__name__}); expected a string")
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


def _looks_like_path(source: str) -> bool:
    """Whether a name is a path on the disk rather than a Hub id (``name`` or ``owner/name``)."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
