"""The names and forms of weights in open_clip, and in OpenAI's CLIP before it (arXiv 2103.00020).

One matrix holds what transformers keeps apart as ``q_proj``, ``k_proj`` and ``v_proj``; the two projections into the
common space are stored transposed. Numbers of heads stand in no tensor: a head is 64 wide, unless the sizes say so.
Towers are plain vision transformers with a class token; other towers of open_clip (ResNet, timm, Hugging Face) are
refused by the names that do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from msgspec import Meta, Struct, ValidationError, convert
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.families.original import Original

if TYPE_CHECKING:
    from transformers import CLIPModel

HEAD = 64  # width of a head, where nothing is said
TOWERS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
SINGLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
PARTS = ("q_proj", "k_proj", "v_proj")
IN_BLOCK = re.compile(rf"({'|'.join(map(re.escape, TOWERS))})\.(\d+)\.(.+)\.(weight|bias)")
FUSED = re.compile(rf"({'|'.join(map(re.escape, TOWERS))})\.(\d+)\.attn\.in_proj_(weight|bias)")


def of_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an open_clip state dict under the names of transformers; names that are not known stay as they are.

    >>> list(of_transformers({"visual.transformer.resblocks.0.mlp.c_fc.bias": torch.zeros(4)}))
    ['vision_model.encoder.layers.0.mlp.fc1.bias']
    """
    found: dict[str, Tensor] = {}
    for given, tensor in state.items():
        name = given.removeprefix("text.")  # of its custom text towers
        if match := FUSED.fullmatch(name):
            layer = f"{TOWERS[match[1]]}.{match[2]}.self_attn"
            found |= {f"{layer}.{of}.{match[3]}": part for of, part in zip(PARTS, tensor.chunk(3), strict=True)}
        elif (match := IN_BLOCK.fullmatch(name)) and match[3] in BLOCK:
            found[f"{TOWERS[match[1]]}.{match[2]}.{BLOCK[match[3]]}.{match[4]}"] = tensor
        elif name in TRANSPOSED:
            found[TRANSPOSED[name]] = tensor.T.contiguous()
        else:
            found[SINGLE.get(name, name)] = tensor
    return found


def of_open_clip(model: Any, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the weights of a ``CLIPModel`` of transformers under open_clip's names.

    Args:
        model: the model.
        state: its weights, where they are not its own, such as sparse ones.

    Raises:
        MultiflowError: another model.
    """
    if getattr(model.config, "model_type", None) != "clip" or not hasattr(model, "logit_scale"):
        raise MultiflowError(f"a {type(model).__name__} has no form in open_clip here; give a CLIPModel")
    state = {name: tensor.detach() for name, tensor in (state or model.state_dict()).items()}
    single = {theirs: ours for ours, theirs in SINGLE.items()}
    transposed = {theirs: ours for ours, theirs in TRANSPOSED.items()}
    towers, block = ({theirs: ours for ours, theirs in table.items()} for table in (TOWERS, BLOCK))
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(rf"({'|'.join(map(re.escape, towers))})\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None and name in single:
            found[single[name]] = tensor
        elif match is None and name in transposed:
            found[transposed[name]] = tensor.T.contiguous()
        elif match is not None and match[3] in block:
            found[f"{towers[match[1]]}.{match[2]}.{block[match[3]]}.{match[4]}"] = tensor
        elif match is not None and match[3] == f"self_attn.{PARTS[0]}":
            parts = [state[f"{match[1]}.{match[2]}.self_attn.{part}.{match[4]}"] for part in PARTS]
            found[f"{towers[match[1]]}.{match[2]}.attn.in_proj_{match[4]}"] = torch.cat(parts)
    return found


def model_config(config: Any) -> dict[str, Any]:
    """Return the sizes of a ``CLIPConfig`` as open_clip's ``open_clip_config.json`` writes them."""
    text, vision = config.text_config, config.vision_config
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": text.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    }


Count = Annotated[int, Meta(ge=1, le=2**20)]


class _Vision(Struct, frozen=True):
    head_width: Count = HEAD


class _Text(Struct, frozen=True):
    heads: Count | None = None


class _Sizes(Struct, frozen=True):
    """What is read of ``open_clip_config.json``."""

    quick_gelu: bool | None = None
    vision_cfg: _Vision = _Vision()
    text_cfg: _Text = _Text()


def build_clip(sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> CLIPModel:
    """Build a CLIP model of transformers for the tensors of a file, under either names.

    Args:
        sizes: what tensors do not say, all of it optional: ``quick_gelu``, ``vision_cfg`` with ``head_width``,
            ``text_cfg`` with ``heads``; ``open_clip_config.json`` is one, also as a whole.
        state: the tensors of the file.

    Raises:
        MultiflowError: a tensor that every CLIP has is missing.
    """
    from transformers import CLIPConfig, CLIPModel, initialization

    try:
        said = convert(sizes.get("model_cfg", sizes), _Sizes)
    except ValidationError as error:
        raise MultiflowError(f"the sizes of the model are not those of open_clip ({error}); give its config") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in of_transformers(state).items()}
    lacking = [name for name, theirs in {**SINGLE, **TRANSPOSED}.items() if theirs not in shapes]
    if lacking:
        raise MultiflowError(
            f"the file has no tensor '{lacking[0]}', which every CLIP of open_clip with a vision transformer has; give "
            "such a file, or a Hugging Face id or folder"
        )
    act = "quick_gelu" if said.quick_gelu else "gelu"
    patch, width = shapes[SINGLE["visual.conv1.weight"]][-1], shapes[SINGLE["visual.class_embedding"]][0]
    side = round((shapes[SINGLE["visual.positional_embedding"]][0] - 1) ** 0.5)
    vocabulary, text_width = shapes[SINGLE["token_embedding.weight"]]
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 0}
    vision = {
        **_tower("vision_model", shapes, width),
        "num_attention_heads": _heads("vision", width, width // said.vision_cfg.head_width or 1),
        "image_size": side * patch,
        "patch_size": patch,
        "hidden_act": act,
    }
    text = {
        **_tower("text_model", shapes, text_width),
        "num_attention_heads": _heads("text", text_width, said.text_cfg.heads or text_width // HEAD or 1),
        "vocab_size": vocabulary,
        "max_position_embeddings": shapes[SINGLE["positional_embedding"]][0],
        "hidden_act": act,
        **ends,
    }
    dim = shapes[TRANSPOSED["visual.proj"]][0]
    towers: dict[str, Any] = {
        "text_config": text | {"projection_dim": dim},
        "vision_config": vision | {"projection_dim": dim},
    }
    with torch.device("cpu"), initialization.no_init_weights():  # its buffers of positions are in no file
        return CLIPModel(CLIPConfig(**towers, projection_dim=dim))


def _heads(tower: str, width: int, heads: int) -> int:
    if width % heads:
        raise MultiflowError(
            f"the {tower} tower is {width} wide, which {heads} heads cannot share; give the sizes of the model with "
            "vision_cfg.head_width and text_cfg.heads"
        )
    return heads


def _tower(name: str, shapes: Mapping[str, tuple[int, ...]], width: int) -> dict[str, int]:
    layers = {found[1] for key in shapes if (found := re.match(rf"{name}\.encoder\.layers\.(\d+)\.", key))}
    hidden = shapes.get(f"{name}.encoder.layers.0.mlp.fc1.bias", (4 * width,))[0]
    return {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": len(layers)}


def _key(name: str) -> str:
    return name


OPEN_CLIP = Original(
    layers=r"(vision|text)_model\.encoder\.layers\.\d+\.(self_attn|mlp)\.",
    key=_key,
    build=build_clip,
    translate=of_transformers,
    ignored=r"(^|\.)attn_mask$|^(input_resolution|context_length|vocab_size)$|position_ids$",
    presets={"base": {}, "quickgelu": {"quick_gelu": True}},
)
