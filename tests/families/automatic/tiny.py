"""Tiny random models of every vision-language type of transformers, and batches for them, made by rule.

A config is the type's own default with every size made small by its name; what one type needs beside that stands in
`SPECIAL`. A batch has two texts of different lengths, so that one is padded, with one image each.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto import modeling_auto

TASKS = ("IMAGE_TEXT_TO_TEXT", "ZERO_SHOT_IMAGE_CLASSIFICATION", "VISUAL_QUESTION_ANSWERING")
VOCABULARY, IMAGE, PATCH = 192, 32, 8
PAD, BEGIN, END = 0, 1, 2
SIZES: list[tuple[str, Any]] = [  # what a name of a config means -> its small size
    (r"(pad)_token_id$", PAD),
    (r"(bos|decoder_start)_token_id$", BEGIN),
    (r"eos_token_id$", END),
    (r"vocab_size", VOCABULARY),
    (r"max_position_embeddings|max_seq|max_source", 512),
    (r"image_size$|img_size", IMAGE),
    (r"(?<!temporal_)patch_size$", PATCH),
    (r"num_query_tokens|resampler_n_latents|latent_query_num", 4),
    (r"experts?_(per_tok|top_?k)|top_k_experts|num_experts_per|moe_k$|topk$|router_top_k", 2),
    (r"n_group$|topk_group$|num_expert_group", 1),
    (r"n_shared_experts|num_shared_experts", 1),
    (r"num_(local_|routed_)?experts$|n_routed_experts|moe_num_experts", 4),
    (r"first_k_dense|moe_layer_start|num_dense|first_dense", 1),
    (r"(num_)?(key_value|kv)_heads|num_global_key", 2),
    (r"num_.*heads$|n_heads?$|_heads$|heads$", 4),
    (r"lora_rank", 16),
    (r"head_dim|d_kv$|head_size", 16),
    (r"num.*_layers$|n_layers?$|^depth$|_layers$|num_blocks$", 2),
    (r"moe_intermediate|expert_ffn|moe_ffn", 32),
    (r"intermediate|ffn|mlp_dim|d_ff|fc_dim|hidden_mlp", 64),
    (
        r"hidden_size|d_model|embed_dim$|n_embd|width$|projection_dim|hidden_dim|_hidden|^dim$|embed_size|_dim$|embedding_size",
        32,
    ),
]
KEEP = r"mlp_ratio|temporal|in_channels|num_channels|logit|attention_dropout|num_labels|rotary_dim|conv|channels"
SPECIAL: dict[str, dict[str, Any]] = {  # type, or its part -> what the rule does not give
    "align.vision_config": {"depth_coefficient": 0.1, "width_coefficient": 0.1},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "blip-2": {"image_token_index": 150},
    "Blip2ForImageTextRetrieval": {"qformer_config": {"use_qformer_text_input": True}, "image_token_index": None},
    "gemma3": {"mm_tokens_per_image": 4},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "florence2.vision_config": {
        "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2], "depths": [1, 1], "patch_size": [7, 3],
        "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "window_size": 4,
    },
    "vision-encoder-decoder.decoder": {"add_cross_attention": True, "is_decoder": True},
    "vision-encoder-decoder": {"pad_token_id": PAD, "decoder_start_token_id": BEGIN},
}  # fmt: skip


def types() -> list[tuple[str, str]]:
    """Return all (type, class of model) that transformers registers for the tasks."""
    found = {}
    for task in TASKS:
        for kind, name in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            found[kind, name] = None
    return sorted(found)


def small(name: str, value: Any) -> Any:
    """Return the small size that a name means, or the value itself."""
    if isinstance(value, bool) or not isinstance(value, int) or re.search(KEEP, name):
        return value
    for pattern, size in SIZES:
        if re.search(pattern, name):
            return min(size, value) if value > 0 else value
    return value


def shrink(kind: type, path: str, ids: list[int]) -> dict[str, Any]:
    """Return the arguments of a small config."""
    default = kind()
    parts = {}
    for key, of in kind.sub_configs.items():
        part = getattr(default, key, None)
        part_type = type(part) if part is not None else of
        if part_type is AutoConfig or isinstance(part, dict):
            continue
        parts[key] = shrink(part_type, f"{path}.{key}", ids) | {"model_type": part_type.model_type}
    found: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        if name in parts or name in ("transformers_version", "model_type"):
            continue
        token = re.search(r"token_(id|index)$|_token$", name) and not re.search("pad|bos|eos|decoder_start", name)
        if token and isinstance(value, int) and not isinstance(value, bool):
            ids.append(VOCABULARY - 32 + len(ids))
            found[name] = ids[-1]
            continue
        new = small(name, value)
        if new != value:
            found[name] = new
    for name, value in default.to_dict().items():
        if name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            sections = {"mrope_section": []} if in_sections(kind) and "rope_theta" in value else {}
            found[name] = small_rope(sections | value, 16 if isinstance(getattr(default, "head_dim", None), int) else 8)
    special = SPECIAL.get(path, {})
    return {**found, **parts, **special}


def in_sections(kind: type) -> bool:
    """Whether the models of a config turn time, height and width apart (their code says so, not their config)."""
    module = importlib.import_module(kind.__module__.replace(".configuration_", ".modeling_"))
    return "mrope_section" in inspect.getsource(module)


def small_rope(rope: dict[str, Any], width: int) -> dict[str, Any]:
    """Return rotary parameters whose sections (time, height, width) fit a small head."""
    inner = {name: small_rope(value, width) if isinstance(value, dict) else value for name, value in rope.items()}
    if "mrope_section" in inner:
        half = int(width * inner.get("partial_rotary_factor", 1)) // 2
        inner["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
    return inner


def build_config(kind: str, name: str) -> Any:
    """Return the small config of a type, for a class of model."""
    settings = shrink(CONFIG_MAPPING[kind], kind, [])
    for part, more in SPECIAL.get(name, {}).items():
        settings[part] = settings[part] | more if isinstance(more, dict) else more
    return CONFIG_MAPPING[kind](**settings)


def build(kind: str, name: str) -> Any:
    """Return a small model with random weights, in evaluation mode."""
    torch.manual_seed(0)
    return getattr(transformers, name)(build_config(kind, name)).eval()


def batch(model: Any, *, padded: bool = True) -> dict[str, torch.Tensor]:
    """Return a batch of two images and two texts, the second of which is shorter."""
    parameters = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(1)
    images = {name: value for name, value in pixels(model, parameters, generator).items() if name in parameters}
    counts = image_tokens(model, images, parameters)
    lengths = (9, 6 if padded else 9 + counts[0] - counts[1])
    longest = max(length + count for length, count in zip(lengths, counts, strict=True))
    ids = torch.full((2, longest), PAD)
    token = next((t for n in IMAGE_TOKENS if isinstance(t := getattr(model.config, n, None), int)), None)
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        words = torch.randint(3, 100, (length,), generator=generator)
        words[0] = BEGIN
        image = [] if token is None else [token] * count
        text = torch.tensor([BEGIN, *image, *words[1:].tolist()])
        ids[row, : len(text)] = text
    mask = (ids != PAD).long()
    found = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill((mask == 0) | (ids == token), -100)}
    if "mm_token_type_ids" in parameters or ("token_type_ids" in parameters and token is not None):
        found["mm_token_type_ids" if "mm_token_type_ids" in parameters else "token_type_ids"] = (ids == token).long()
    parts = (model.config, getattr(model.config, "text_config", None))
    if any(getattr(part, "is_encoder_decoder", False) for part in parts):
        found["labels"] = torch.tensor([[5, 6, 7, END], [8, END, -100, -100]])
    if type(model).__name__.endswith("ForQuestionAnswering") and hasattr(model.config, "num_labels"):
        found["labels"] = torch.rand(2, model.config.num_labels, generator=generator)
    found = {name: value for name, value in found.items() if name in parameters}
    return found | images


def pixels(model: Any, parameters: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return what the model takes of two images, in the form that its forward names."""

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) + 0.1

    config = model.config
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    size = getattr(vision, "image_size", None) or IMAGE
    size = size if isinstance(size, int) else size[0]
    patch = getattr(vision, "patch_size", PATCH)
    patch = patch if isinstance(patch, int) else PATCH
    if "image_grid_thw" in parameters:
        grid = torch.tensor([[1, 4, 4], [1, 4, 8]])
        channels = getattr(vision, "in_channels", getattr(vision, "num_channels", 3))
        width = channels * patch**2 * getattr(vision, "temporal_patch_size", 1)
        return {"pixel_values": rand(int(grid.prod(1).sum()), width), "image_grid_thw": grid}
    if "flattened_patches" in parameters:
        patches = rand(2, 6, 2 + 3 * patch**2)
        patches[1, 4:] = 0
        mask = (patches != 0).any(-1).long()
        return {"flattened_patches": patches} | ({} if "input_ids" in parameters else {"attention_mask": mask})
    if "spatial_shapes" in parameters:
        shapes = torch.tensor([[4, 4], [2, 4]])
        mask = (torch.arange(16) < shapes.prod(1, keepdim=True)).long()
        return {"pixel_values": rand(2, 16, 3 * patch**2), "spatial_shapes": shapes, "pixel_attention_mask": mask}
    if "aspect_ratio_ids" in parameters:
        return {
            "pixel_values": rand(2, 1, vision.max_num_tiles, 3, size, size),
            "aspect_ratio_ids": torch.tensor([[1], [2]]),
            "aspect_ratio_mask": torch.tensor([[[1, 0, 0, 0]], [[1, 1, 0, 0]]]),
        }
    if "pixel_attention_mask" in parameters:
        mask = torch.ones(2, 1, size, size, dtype=torch.long)
        mask[1, :, size // 2 :] = 0
        return {"pixel_values": rand(2, 1, 3, size, size) * mask[:, :, None], "pixel_attention_mask": mask}
    found = {"pixel_values": rand(2, 3, size, size)}
    features = inspect.signature(model.get_image_features).parameters if hasattr(model, "get_image_features") else {}
    if "image_sizes" in features and features["image_sizes"].default is inspect.Parameter.empty:
        found["image_sizes"] = torch.tensor([[size, size]] * 2)
        if re.search("next|onevision|granite4", model.config.model_type):  # the whole image and one tile of it
            found["pixel_values"] = rand(2, 2, 3, size, size)
    return found


IMAGE_TOKENS = ("image_token_id", "image_token_index")


def image_tokens(model: Any, images: dict[str, torch.Tensor], parameters: Any) -> list[int]:
    """Return how many places in the text each image takes."""
    names = any(isinstance(getattr(model.config, name, None), int) for name in IMAGE_TOKENS)
    if not names or not hasattr(model, "get_image_features"):
        return [0, 0]
    takes = inspect.signature(model.get_image_features).parameters
    with torch.no_grad():
        out = model.get_image_features(**{name: value for name, value in images.items() if name in takes})
    found = getattr(out, "pooler_output", out)
    if not isinstance(found, torch.Tensor):
        return [len(image.flatten(0, -2)) for image in found]
    count = found.flatten(0, -2).shape[0]
    return [len(image.flatten(0, -2)) for image in found] if found.dim() > 2 else [count // 2] * 2
