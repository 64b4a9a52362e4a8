from __future__ import annotations

import numpy as np
import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data.text import build_word_tokenizer, encode_texts, load_tokenizer


def test_special_tokens_come_first_then_words_in_order_of_appearance():
    tokenizer = build_word_tokenizer(["red square", "a red circle"])
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "square", "a", "circle"]
    assert tokenizer.convert_ids_to_tokens(range(9)) == tokens
    assert len(tokenizer) == 9


def test_lower_case_and_punctuation():
    tokenizer = build_word_tokenizer(["a red, square top-left"])
    ids = tokenizer("A Red,square top-LEFT circle")["input_ids"]
    words = ["[CLS]", "a", "red", ",", "square", "top", "-", "left", "[UNK]", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(ids) == words


def test_saved_and_loaded(tmp_path):
    tokenizer = build_word_tokenizer(["a red square"])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("a RED thing")["input_ids"] == tokenizer("a red thing")["input_ids"]
    assert loaded.mask_token_id == 4


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(MultiflowError, match=r"vocabulary of the tokenizer is empty"):
        build_word_tokenizer(["  "])


def test_a_missing_tokenizer_names_the_option(tmp_path):
    with pytest.raises(MultiflowError, match=r"tokenizer=") as caught:
        load_tokenizer(tmp_path / "none")
    assert str(tmp_path / "none") in str(caught.value)


def test_an_id_that_cannot_be_had_names_the_option_at_once(monkeypatch):
    asked = []

    def unreachable(self, name, timeout):
        asked.append((name, timeout))
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(MultiflowError, match=r"no tokenizer found at 'someone/nothing' .* Hub .*tokenizer=DIR_OR_ID"):
        load_tokenizer("someone/nothing")
    assert asked == [("someone/nothing", 5)]


def test_a_folder_without_tokenizer_names_the_option(tmp_path):
    with pytest.raises(MultiflowError, match=r"tokenizer="):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_mask_is_refused(tmp_path):
    tokenizer = build_word_tokenizer(["a"])
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MultiflowError, match=r"has no mask_token"):
        load_tokenizer(tmp_path)


def test_encoding_is_cls_and_words_without_sep(tokenizer):
    ids, attention = encode_texts(tokenizer, ["a red square", "a", ""])
    word = tokenizer.convert_tokens_to_ids
    np.testing.assert_array_equal(
        ids, [[2, word("a"), word("red"), word("square")], [2, word("a"), 0, 0], [2, 0, 0, 0]]
    )
    np.testing.assert_array_equal(attention, [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    assert ids.dtype == attention.dtype == np.int64


def test_encoding_cuts_at_max_length(tokenizer):
    ids, _ = encode_texts(tokenizer, ["a " * 50, "red"])
    assert ids.shape == (2, 40)
    ids, attention = encode_texts(tokenizer, ["a red square"], max_length=3)
    assert ids.shape == (1, 3)
    assert attention.all()


def test_encoding_matches_the_tokenizer_itself(tokenizer):
    texts = ["a small red circle , left of two big squares", "unbelievable"]
    ids, attention = encode_texts(tokenizer, texts)
    for text, row, mask in zip(texts, ids, attention, strict=True):
        assert row[mask == 1].tolist() == tokenizer(text)["input_ids"][:-1]  # theirs ends with [SEP]


def test_empty_texts_and_no_texts(tokenizer):
    assert encode_texts(tokenizer, ["", ""])[0].tolist() == [[2], [2]]
    assert encode_texts(tokenizer, [])[0].shape == (0, 1)


def test_wrong_texts_are_refused(tokenizer):
    with pytest.raises(MultiflowError, match=r"a caption is 7 \(int\)"):
        encode_texts(tokenizer, ["a", 7])  # type: ignore[list-item]
    with pytest.raises(MultiflowError, match=r"max_length 1"):
        encode_texts(tokenizer, ["a"], max_length=1)
