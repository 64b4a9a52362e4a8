from __future__ import annotations

import torch

from multiflow.families.xvlm.text import attend


def test_attention_is_the_softmax_of_the_scaled_products():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 1]]).bool()[:, None, None]
    parts = []
    for head in range(2):
        q, k, v = (x[..., head * 4 : head * 4 + 4] for x in (query, key, value))
        scores = (q @ k.transpose(1, 2) / 2).masked_fill(~mask[:, 0], -torch.inf)
        parts.append(scores.softmax(-1) @ v)
    torch.testing.assert_close(attend(query, key, value, 2, mask), torch.cat(parts, dim=-1))
