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
    (LAYERS := r"num.*_layers$|n_layers?$|^depth$|_layers$|num_blocks$|^layers$", 2),
    (r"moe_intermediate|expert_ffn|moe_ffn", 32),
    (r"intermediate|ffn|mlp_dim|d_ff|fc_dim|hidden_mlp", 64),
    (
        r"hidden_size|d_model|embed_dim$|n_embd|width$|projection_dim|hidden_dim|_hidden|^dim$|embed_size|_dim$|embedding_size",
        32,
    ),
]
KEEP = r"mlp_ratio|temporal|in_channels|num_channels|logit|attention_dropout|num_labels|rotary_dim|conv|channels"
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
VQ = {"base_channels": 32, "latent_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
SAM = {"output_channels": 16, "downsample_channels": [16, 32]}
SPECIAL: dict[str, dict[str, Any]] = {  # type, or its part -> what the rule does not give
    "align.vision_config": {"depth_coefficient": 0.1, "width_coefficient": 0.1},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "blip-2": {"image_token_index": 150},
    "Blip2ForImageTextRetrieval": {"qformer_config": {"use_qformer_text_input": True}, "image_token_index": None},
    "cohere_compass.text_config": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "ernie4_5_vl_moe.text_config": {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2]}},
    "llama4.vision_config": {"intermediate_size": 128, "projector_input_dim": 32, "vision_output_dim": 32},
    "llava_next": {"image_grid_pinpoints": [[IMAGE, IMAGE]]},
    "llava_next_video": {"image_grid_pinpoints": [[IMAGE, IMAGE]]},
    "llava_onevision": {"image_grid_pinpoints": [[IMAGE, IMAGE]]},
    "minicpm_ocr.vision_config": {"insert_layer_id": 0},
    "minicpmv4_6.vision_config": {"insert_layer_id": 0},
    "minicpmv4_7.vision_config": {"insert_layer_id": 0},
    "minicpm_ocr": {"insert_layer_id": 0, "image_token_id": 160},
    "minicpmv4_6": {"insert_layer_id": 0, "image_token_id": 160},
    "minicpmv4_7": {"insert_layer_id": 0, "image_token_id": 160},
    "mllama.vision_config": {"vision_output_dim": 96, "intermediate_layers_indices": [0, 1]},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 150, "vision_end_token_id": 151},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 150, "vision_end_token_id": 151},
    "step3p7.text_config": {"sliding_window": 64},
    "t5gemma2.encoder": {"mm_tokens_per_image": 4},
    "udop": {"decoder_start_token_id": PAD},
    "videoprism.vision_config": {"tubelet_size": [1, PATCH, PATCH]},
    "vipllava": {"vision_feature_layers": [-1, -2]},
    "chameleon": {"vocabulary_map": {"<image>": 160} | {f"IMGIMG{'ABCDEFGHIJ'[i]}Z": 100 + i for i in range(8)}},
    "chameleon.vq_config": VQ | {"num_embeddings": 8, "resolution": IMAGE},
    "janus.vq_config": VQ,
    "emu3": {"vocabulary_map": {"<image>": 160, "<|extra_200|>": 99}
             | {f"<|visual token {i:06d}|>": 100 + i for i in range(8)}},
    "emu3.vq_config": VQ | {"codebook_size": 8},
    "deepseek_ocr2.text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "deepseek_ocr2.vision_config.sam_config": SAM,
    "unlimited_ocr.vision_config.sam_config": SAM,
    "glm5_next.text_config": {"index_topk": 16},
    "granite4_vision": {"image_grid_pinpoints": [[IMAGE, IMAGE]], "deepstack_layer_map": [[1, 0]],
                        "spatial_target_layers": [1], "downsample_rate": "1/2"},
    "hunyuan_vl.text_config": {"head_dim": 8},
    "instructblip": {"image_token_index": 150},
    "instructblipvideo": {"video_token_index": 150},
    "kimi_k25.vision_config": {"pos_emb_height": 32},
    "mistral4": {"head_dim": 32},
    "molmo2.adapter_config": {"vision_feature_layer": [1, 0]},
    "molmo2.vision_config": {"num_position_embeddings": 16},
    "muse_glimmer": {"out_hidden_size": 128},
    "muse_spark": {"out_hidden_size": 128},
    "nemotron_h_omni.vision_config": {"video_temporal_patch_size": 2},
    "pix2struct.text_config": {"d_kv": 8},
    "qwen4_exp.text_config": {"compress_ratio": 2, "token_budget": 8},
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
    if isinstance(value, list) and value and re.search(r"size$|_dim$|_sizes$", name):
        return [small(name, part) for part in value]
    if isinstance(value, bool) or not isinstance(value, int) or re.search(KEEP, name):
        return value
    for pattern, size in SIZES:
        if re.search(pattern, name):
            return min(size, value) if value > 0 else value
    return value


def default_config(kind: type) -> Any:
    """Return the default config of a type; that of an encoder and a decoder needs them named before 5.20."""
    if kind is not transformers.VisionEncoderDecoderConfig:
        return kind()
    return kind(encoder=transformers.ViTConfig().to_dict(), decoder=transformers.BertConfig().to_dict())


def shrink(kind: type, path: str, ids: list[int]) -> dict[str, Any]:
    """Return the arguments of a small config."""
    default = default_config(kind)
    parts = {}
    for key, of in kind.sub_configs.items():
        part = getattr(default, key, None)
        part_type = type(part) if part is not None else of
        if part_type is AutoConfig or isinstance(part, dict):
            continue
        parts[key] = shrink(part_type, f"{path}.{key}", ids) | {"model_type": part_type.model_type}
    given, found = {k: v for k, v in default.to_dict().items() if k not in (*parts, "transformers_version")}, {}
    for name, value in given.items():
        token = TOKEN.search(name) and isinstance(value, int) and not isinstance(value, bool)
        if token and not re.search("pad|bos|eos|decoder_start|per_token", name):
            ids.append(VOCABULARY - 32 + len(ids))
            found[name] = ids[-1]
        elif (new := small(name, value)) != value:
            found[name] = new
    found |= small_layers(given, found)
    heads, kv = (next((n for n in given if re.fullmatch(p, n)), "") for p in (HEADS, KV_HEADS))
    if kv and given.get(heads) == given[kv]:
        found[kv] = found.get(heads, given[kv])
    if "qk_rope_head_dim" in given:  # the others follow from it
        found = {name: value for name, value in found.items() if name not in ("qk_head_dim", "head_dim")}
    width = 16 if isinstance(given.get("head_dim"), int) else 8
    if width == 16 and given.get("hidden_size", 0) == given["head_dim"] * given.get(heads, 0):
        width = found["head_dim"] = 8
    for name, value in given.items():
        if name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            sections = {"mrope_section": []} if in_sections(kind) and "rope_theta" in value else {}
            found[name] = small_rope(sections | value, width)
    return {**found, **parts, **SPECIAL.get(path, {})}


TOKEN = re.compile(r"(token|patch)_(id|index)$|_token$")
HEADS, KV_HEADS = r"num_(attention_)?heads", r"num_(key_value|kv)_heads"


def small_layers(given: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return one layer of each kind, and what is said of single layers cut to those that are left."""
    name = next((name for name in given if (re.search(LAYERS, name) and "hidden" in name) or name == "depth"), None)
    if name is None or not isinstance(given[name], int):
        return {}
    before, kinds, more = given[name], 2, {}
    for value in given.values():
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value) and len(value) == before:
            kinds = max(kinds, len(dict.fromkeys(value)))
    for key, value in given.items():
        if not isinstance(value, list) or not value or not all(isinstance(part, int | str | float) for part in value):
            if key == "per_layer_config":
                more[key] = {}
            continue
        if len(value) == before:
            of = list(dict.fromkeys(value)) if isinstance(value[0], str) else value[:kinds]
            of = found.get(key, of)
            more[key] = (of * kinds)[:kinds] if isinstance(value[0], int | float) else (of + of[-1:] * kinds)[:kinds]
        elif re.search("ind(ex|ic)es|_layers?$", key) and min(value) >= 0 and max(value) < before:
            more[key] = list(dict.fromkeys(min(part, kinds - 1) for part in value))
    return {**more, name: kinds}


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
    return build_from(build_config(kind, name), name)


def build_from(config: Any, name: str) -> Any:
    """Return a model of a config with random weights, in evaluation mode."""
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # gates that start at zero, and weights all but zero, would stop the rest
            if parameter.is_floating_point() and parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
    return model


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
    if type(model).__name__ == "BlipForQuestionAnswering":
        found["labels"] = torch.tensor([[5, 6, 7, END], [8, END, PAD, PAD]])
    if type(model).__name__ == "ViltForQuestionAnswering":
        found["labels"] = torch.rand(2, model.config.num_labels, generator=generator)
    if "qformer_input_ids" in parameters:
        found["qformer_input_ids"] = torch.tensor([[BEGIN, 5, 6, END], [BEGIN, END, PAD, PAD]])
        found["qformer_attention_mask"] = (found["qformer_input_ids"] != PAD).long()
    if "protein_input_ids" in parameters:
        found["protein_input_ids"] = torch.tensor([[4, 5, 6, 7, 8, 9, 10], [4, 8, 6, 11, PAD, PAD, PAD]])
        found["protein_attention_mask"] = (found["protein_input_ids"] != PAD).long()
    if "image_embeds_position_mask" in parameters:
        found["image_embeds_position_mask"] = torch.zeros_like(ids)
        found["image_embeds_position_mask"][:, 1 : 1 + model.config.latent_query_num] = 1
    if "image_attention_mask" in parameters:
        found["image_attention_mask"] = torch.ones(*ids.shape, 2, dtype=torch.long)
        found["image_attention_mask"][1, :, 1] = 0  # the second text has one image, the first two
    if "bbox" in parameters:
        found["bbox"] = torch.zeros(*ids.shape, 4)
    if (
        model.main_input_name == "pixel_values"
        and "decoder_input_ids" in parameters
        and "qformer" not in model._modules
    ):
        found = {"labels": found["labels"]}
        if model.config.model_type == "pp_formulanet":
            found = {"decoder_input_ids": torch.tensor([[BEGIN, 5, 6, 7], [BEGIN, 8, 9, END]])}
            found["labels"] = found["decoder_input_ids"]
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
        time = getattr(vision, "temporal_patch_size", getattr(vision, "patch_temporal", 1))
        count = int(grid.prod(1).sum())
        shape = (channels * time * patch**2,)
        if re.search("kimi|paddleocr", model.config.model_type):
            shape = (channels, patch, patch)
        if model.config.model_type == "inkling2":
            shape = (patch, patch, channels)
        return {"pixel_values": rand(count, *shape), "image_grid_thw": grid, "image_merge_sizes": torch.tensor([2, 2])}
    if "flattened_patches" in parameters:
        patches = rand(2, 6, 2 + vision.patch_embed_hidden_size)
        patches[..., :2] = torch.arange(6).view(-1, 1) // 2 + 1
        patches[1, 4:] = 0
        mask = (patches != 0).any(-1).long()
        sizes = {"width": torch.tensor([2, 2]), "height": torch.tensor([3, 2])}
        return {"flattened_patches": patches} | (sizes if "input_ids" in parameters else {"attention_mask": mask})
    if "target_sizes" in parameters:
        return {"pixel_values": rand(1, 3, patch, 48 * patch), "target_sizes": torch.tensor([[4, 4], [4, 8]])}
    if "image_position_ids" in parameters:
        grid = torch.cartesian_prod(torch.arange(6), torch.arange(6))
        ids = torch.stack([grid, torch.where(grid[:, :1] < 3, grid, -1)])
        width = 3 * (patch * (3 if model.config.model_type == "gemma4_unified" else 1)) ** 2
        return {"pixel_values": rand(2, 36, width), "image_position_ids": ids}
    if model.config.model_type == "inkling_mm_model":
        return {"pixel_values": rand(8, 2, patch, patch, 3)}
    if model.config.model_type == "instructblipvideo":
        return {"pixel_values": rand(2, 2, 3, size, size)}
    if "image_patches" in parameters:
        return {"pixel_values": rand(2, 6, 3 * patch**2)}
    if "image_attention_mask" in parameters:
        return {"pixel_values": rand(2, 2, 3, size, size)}
    if model.config.model_type == "granite_docling":
        tiles = torch.tensor([[True, True], [True, False]])
        return {"pixel_values": rand(2, 2, 3, size, size), "pixel_attention_mask": tiles}
    if "pixel_values_videos" in parameters and "pixel_values" not in parameters:
        frames = getattr(vision, "num_frames", 2)
        name = "pixel_values_images" if "pixel_values_images" in parameters else "pixel_values_videos"
        return {name: rand(2, frames, 3, size, size) if name.endswith("videos") else rand(2, 3, size, size)}
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
    found = {"pixel_values": rand(2, 3, size, size), "high_res_pixel_values": rand(2, 3, size, size)}
    holders = [module for module in model.modules() if hasattr(module, "get_image_features")]
    takes = [inspect.signature(holder.get_image_features).parameters.get("image_sizes") for holder in holders]
    if any(take is not None and take.default is inspect.Parameter.empty for take in takes):
        found["image_sizes"] = torch.tensor([[size, size]] * 2)
        if re.search("next|onevision|granite4", model.config.model_type):  # the whole image and one tile of it
            found["pixel_values"] = rand(2, 2, 3, size, size)
    return found


def image_tokens(model: Any, images: dict[str, torch.Tensor], parameters: Any) -> list[int]:
    """Return how many places in the text each image takes."""
    names = any(isinstance(getattr(model.config, name, None), int) for name in IMAGE_TOKENS)
    holders = [module for module in model.modules() if hasattr(module, "get_image_features")]
    if not names or not holders:
        return [0, 0]
    if "qformer_input_ids" in parameters:
        return [model.config.num_query_tokens * (images["pixel_values"].dim() - 3)] * 2
    takes = {name for holder in holders for name in inspect.signature(holder.get_image_features).parameters}
    with torch.no_grad():
        out = holders[0].get_image_features(**{name: value for name, value in images.items() if name in takes})
    found = next(
        x for x in (getattr(out, "pooler_output", None), getattr(out, "last_hidden_state", None), out) if x is not None
    )
    if not isinstance(found, torch.Tensor):
        return [len(image.flatten(0, -2)) for image in found]
    if found.dim() > 2 and len(found) == 2:
        return [len(image.flatten(0, -2)) for image in found]
    return [len(found.flatten(0, -2)) // 2] * 2


IMAGE_TOKENS = ("image_token_id", "image_token_index", "image_patch_id", "video_token_index")
