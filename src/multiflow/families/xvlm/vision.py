"""X-VLM's vision tower: a CLIP ViT whose last layers can look at regions of the image.

Per layer: ``x + attention(norm1(x))``, then ``x + mlp(norm2(x))``. In a region batch the hidden states at layer
``layers - local_attn_depth`` are copied once per text and stacked ``[copy per text ; full images]``; from there on a
copy attends to the patches of its region only, a full image to all of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.activations import ACT2FN

from multiflow.base.errors import MultiflowError

EPS = 1e-5  # of every LayerNorm in this tower


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


class SelfAttention(nn.Module):
    """Self-attention with separate projections for queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map ``(batch, tokens, width)`` to the same shape."""
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, mask))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, act: str):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACT2FN[act]
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class VisionLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(sizes["width"], eps=EPS)
        self.self_attn = SelfAttention(sizes["width"], sizes["heads"])
        self.layer_norm2 = nn.LayerNorm(sizes["width"], eps=EPS)
        self.mlp = MLP(sizes["width"], sizes["mlp"], sizes["act"])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map ``(batch, tokens, width)`` to the same shape."""
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class VisionLayers(nn.Module):
    """The stack of layers, under the name that the release gives it."""

    def __init__(self, sizes: dict[str, Any]):
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(sizes) for _ in range(sizes["layers"]))


class VisionEncoder(nn.Module):
    """Images to embeddings of [CLS] and patches.

    Args:
        sizes: the ``vision`` part of `XVLMConfig`.
        image_size: side of the images, in pixels.
        patch_size: side of a patch, in pixels.
    """

    def __init__(self, sizes: dict[str, Any], image_size: int, patch_size: int):
        super().__init__()
        width = sizes["width"]
        self.image_size = image_size
        self.split = sizes["layers"] - sizes["local_attn_depth"]
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embed = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.pos_embed = nn.Embedding(1 + (image_size // patch_size) ** 2, width)
        self.pre_layrnorm = nn.LayerNorm(width, eps=EPS)  # the release's spelling
        self.encoder = VisionLayers(sizes)
        self.post_layernorm = nn.LayerNorm(width, eps=EPS)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Put [CLS] before the patches and add positions: ``(images, 1 + patches, width)``."""
        side = self.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, side, side):
            raise MultiflowError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; this model takes (images, 3, {side}, {side})"
            )
        patches = self.patch_embed(pixel_values.to(self.patch_embed.weight.dtype)).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(patches), 1, -1)
        return self.pre_layrnorm(torch.cat([cls, patches], dim=1) + self.pos_embed.weight)

    def forward(
        self,
        pixel_values: Float[Tensor, "images 3 side side"],
        image_index: Int[Tensor, " texts"] | None = None,
        patch_mask: Int[Tensor, "texts tokens"] | None = None,
    ) -> Float[Tensor, "rows tokens width"]:
        """Encode the images.

        Returns:
            One row per image; with ``image_index`` one row per text (its copy, limited to ``patch_mask``) followed by
            one row per image.
        """
        x = self.embed(pixel_values)
        for layer in self.encoder.layers[: self.split]:
            x = layer(x)
        mask = None
        if image_index is not None and patch_mask is not None:
            if patch_mask.shape[1] != x.shape[1]:
                raise MultiflowError(
                    f"patch_mask has {patch_mask.shape[1]} columns; this model sees {x.shape[1]} tokens an image, "
                    "[CLS] and the patches"
                )
            everything = patch_mask.new_ones(len(x), x.shape[1])
            mask = torch.cat([patch_mask, everything]).bool()[:, None, None]
            x = torch.cat([x.index_select(0, image_index), x])
        for layer in self.encoder.layers[self.split :]:
            x = layer(x, mask)
        return self.post_layernorm(x)
