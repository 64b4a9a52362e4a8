from __future__ import annotations

import pytest

from multiflow.data import build_word_tokenizer
from tests.data.worlds import WORDS


@pytest.fixture(scope="session")
def tokenizer():
    return build_word_tokenizer([*WORDS, "picture part caption", *map(str, range(30))])
