from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiflow.data.sampling import Stream
from multiflow.data.text import IGNORE, build_word_tokenizer, encode_texts, mask_tokens

MASK = 4


@pytest.fixture(scope="module")
def pieces():
    """A WordPiece tokenizer: un ##believ ##able is one word of three pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##believ", "##able", "red", "cat", "s", "##it"]
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), tokens, strict=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def hidden(batch, ids):
    """Positions hidden in every text, checked against the labels."""
    found = []
    for row, positions, labels in zip(ids, batch["mlm_positions"], batch["mlm_labels"], strict=True):
        used = labels != IGNORE
        assert (positions[~used] == 0).all()
        np.testing.assert_array_equal(row[positions[used]], labels[used])
        assert (np.diff(positions[used]) > 0).all()
        found.append(positions[used].tolist())
    return found


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 45), min_size=1, max_size=9),
    seed=st.integers(0, 2**63),
    position=st.integers(0, 10**6),
)
def test_counts_positions_and_the_rest_of_the_text(lengths, seed, position):
    tokenizer = build_word_tokenizer_once()
    ids, attention = encode_texts(tokenizer, ["a red cat " * (n // 3) + "a " * (n % 3) for n in lengths])
    batch = mask_tokens(ids, attention, tokenizer, seed=seed, position=position)
    for row, masked, places, mask in zip(ids, batch["mlm_input_ids"], hidden(batch, ids), attention, strict=True):
        tokens = mask.sum()
        expected = 0 if tokens == 1 else min(8, max(1, round(tokens * 0.25)))
        assert len(places) == expected
        assert all(0 < place < tokens for place in places)
        untouched = np.setdiff1d(np.arange(len(row)), places)
        np.testing.assert_array_equal(masked[untouched], row[untouched])


def build_word_tokenizer_once(_made=[]):  # noqa: B006
    if not _made:
        _made.append(build_word_tokenizer(["a red cat"]))
    return _made[0]


def test_a_function_of_seed_and_position(tokenizer):
    ids, attention = encode_texts(tokenizer, ["a small red circle left of two big green square"] * 4)

    def masked(**where):
        return mask_tokens(ids, attention, tokenizer, **({"seed": 3, "position": 5} | where))["mlm_input_ids"]

    np.testing.assert_array_equal(masked(), masked())
    for other in ({"seed": 4}, {"position": 6}, {"stream": Stream.REGION_MLM}):
        assert (masked() != masked(**other)).any()
    assert (masked()[0] != masked()[1]).any() or (masked()[1] != masked()[2]).any()


def test_words_are_hidden_whole(pieces):
    ids, attention = encode_texts(pieces, ["red unbelievable cat sit red cat"] * 200)
    word = np.array([-1, 0, 1, 1, 1, 2, 3, 3, 4, 5])
    batch = mask_tokens(ids, attention, pieces, seed=0, position=0, rate=0.4)
    whole = {number: set(np.flatnonzero(word == number).tolist()) for number in range(6)}
    seen = set()
    for places in hidden(batch, ids):
        assert len(places) <= 4
        for number in {int(word[place]) for place in places}:
            assert whole[number] <= set(places)
            seen.add(number)
    assert seen == set(range(6))


def test_one_word_longer_than_the_share_is_hidden_in_part(pieces):
    ids, attention = encode_texts(pieces, ["unbelievable", "red"])
    assert ids[0].tolist() == [2, 5, 6, 7]
    assert hidden(mask_tokens(ids, attention, pieces, seed=0, position=0), ids) == [[1], [1]]


def test_skip_grams_hide_neighbours(tokenizer):
    ids, attention = encode_texts(tokenizer, ["a " * 39] * 300)

    def adjacent(**options):
        batch = mask_tokens(ids, attention, tokenizer, seed=0, position=0, **options)
        return np.mean([np.diff(places).tolist().count(1) for places in hidden(batch, ids)])

    alone, default, always = adjacent(skip_gram=0.0), adjacent(), adjacent(skip_gram=1.0)
    assert alone < default < always
    assert alone == pytest.approx(8 * 7 / 39, rel=0.15)  # independent positions
    assert always > 4  # runs of two or three


def test_eighty_ten_ten(tokenizer):
    ids, attention = encode_texts(tokenizer, ["a small red circle left of two big green square"] * 3000)
    batch = mask_tokens(ids, attention, tokenizer, seed=0, position=0)
    rows = np.arange(len(ids))[:, None]
    used = batch["mlm_labels"] != IGNORE
    shown = batch["mlm_input_ids"][rows, batch["mlm_positions"]][used]
    kept = batch["mlm_labels"][used] == shown
    share = len(tokenizer) - 5
    assert np.mean(shown == MASK) == pytest.approx(0.8, abs=0.015)
    assert np.mean(kept) == pytest.approx(0.1 + 0.1 / share, abs=0.012)
    assert not np.isin(shown[shown != MASK], tokenizer.all_special_ids).any()


def test_every_token_has_its_turn(tokenizer):
    ids, attention = encode_texts(tokenizer, ["a small red circle left of two big green square ."] * 4000)
    batch = mask_tokens(ids, attention, tokenizer, seed=1, position=0, skip_gram=0.0)
    counts = np.bincount(np.concatenate(hidden(batch, ids)), minlength=12)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / counts.sum(), 1 / 11, atol=0.01)


def test_slots_are_as_many_as_the_longest_needs(tokenizer):
    ids, attention = encode_texts(tokenizer, ["a " * 39, "a"])
    batch = mask_tokens(ids, attention, tokenizer, seed=0, position=0)
    assert batch["mlm_positions"].shape == batch["mlm_labels"].shape == (2, 8)
    ids, attention = encode_texts(tokenizer, [""])
    batch = mask_tokens(ids, attention, tokenizer, seed=0, position=0)
    assert batch["mlm_labels"].tolist() == [[IGNORE]]
