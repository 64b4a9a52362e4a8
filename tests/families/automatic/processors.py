"""Folders as people have them: a tiny random model with a processor made here, its tokenizer over bytes included."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, PreTrainedTokenizerFast, VisionEncoderDecoderConfig, ViTConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.families.automatic import tiny

SIDE, PATCH = tiny.IMAGE, tiny.PATCH
BEGINNING = ("<pad>", "<s>", "</s>", "<unk>")
TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
PIXELS = {"height": SIDE, "width": SIDE}


def byte_tokenizer(*extra: str, begins: bool = False, ends: bool = False, **options: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer that has a token for every byte, and those that are named."""
    words = [*BEGINNING, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins or ends:
        single = f"{'<s> ' * begins}$A{' </s>' * ends}"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)
    made.add_special_tokens({"additional_special_tokens": list(extra)})
    return made


def save(
    folder: Path, model: Any, tokenizer: Any, image_processor: Any, processor_class: str, **processor: Any
) -> Path:
    """Write a folder of a model as older versions of transformers do: its parts beside each other."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if image_processor is not None:
        image_processor.save_pretrained(folder)
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"processor_class": processor_class}))
    if processor:
        (folder / "processor_config.json").write_text(json.dumps(processor | {"processor_class": processor_class}))
    return folder


def sized(kind: str, name: str, tokenizer: Any, **tokens: str) -> Any:
    """Return the tiny model of a type for the words of a tokenizer: field of its config -> the word it names."""
    config = tiny.build_config(kind, name)
    text = getattr(config, "text_config", None) or getattr(config, "decoder", None) or config
    text.vocab_size = len(tokenizer)
    text.bos_token_id, text.eos_token_id, text.pad_token_id = 1, 2, 0
    for field, word in tokens.items():
        setattr(config, field, tokenizer.convert_tokens_to_ids(word))
    return tiny.build_from(config, name)


def clip(folder: Path) -> Path:
    tokenizer = byte_tokenizer(begins=True, ends=True, model_max_length=64)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=PIXELS)
    return save(folder, sized("clip", "CLIPModel", tokenizer), tokenizer, pixels, "CLIPProcessor")


def siglip(folder: Path) -> Path:
    tokenizer = byte_tokenizer(ends=True, model_max_length=64, model_input_names=["input_ids"])
    pixels = SiglipImageProcessorPil(size=PIXELS)
    return save(folder, sized("siglip", "SiglipModel", tokenizer), tokenizer, pixels, "SiglipProcessor")


def siglip2(folder: Path) -> Path:
    tokenizer = byte_tokenizer(ends=True, model_max_length=64)
    pixels = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=16)
    model = sized("siglip2", "Siglip2Model", tokenizer)
    return save(folder, model, tokenizer, pixels, "Siglip2Processor")


def llava(folder: Path) -> Path:
    tokenizer = byte_tokenizer("<image>", begins=True, padding_side="left", chat_template=USER)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=PIXELS)
    model = sized("llava", "LlavaForConditionalGeneration", tokenizer, image_token_index="<image>")
    how = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return save(folder, model, tokenizer, pixels, "LlavaProcessor", image_token="<image>", **how)


def qwen2_5_vl(folder: Path) -> Path:
    words = {f"{name}_token_id": f"<|{name}|>" for name in ("vision_start", "vision_end")}
    words |= {f"{name}_token_id": f"<|{name}_pad|>" for name in ("image", "video")}
    template = TURNS.replace("IMAGE", "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}")
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", *words.values(), chat_template=template)
    model = sized("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", tokenizer, **words)
    vision = model.config.vision_config
    sizes = {"patch_size": PATCH, "merge_size": vision.spatial_merge_size}
    limits = {"shortest_edge": SIDE * SIDE // 4, "longest_edge": SIDE * SIDE}
    pixels = Qwen2VLImageProcessorPil(size=limits, temporal_patch_size=vision.temporal_patch_size, **sizes)
    return save(folder, model, tokenizer, pixels, "Qwen2_5_VLProcessor")


def smolvlm(folder: Path) -> Path:
    words = ("<image>", "<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<end_of_utterance>", "<video>")
    template = TURNS.replace("IMAGE", "<image>")
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", *words, chat_template=template)
    model = sized("smolvlm", "SmolVLMForConditionalGeneration", tokenizer, image_token_id="<image>")
    edges = {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}}
    pixels = SmolVLMImageProcessorPil(do_image_splitting=False, **edges)
    tokens = (SIDE // PATCH // model.config.scale_factor) ** 2
    return save(folder, model, tokenizer, pixels, "SmolVLMProcessor", image_seq_len=tokens)


def paligemma(folder: Path) -> Path:
    tokenizer = byte_tokenizer("<image>")
    tokenizer.add_tokens([f"<loc{i:0>4}>" for i in range(1024)] + [f"<seg{i:0>3}>" for i in range(128)])
    model = sized("paligemma", "PaliGemmaForConditionalGeneration", tokenizer, image_token_id="<image>")
    pixels = SiglipImageProcessorPil(size=PIXELS)
    pixels.image_seq_length = (SIDE // PATCH) ** 2
    return save(folder, model, tokenizer, pixels, "PaliGemmaProcessor")


def internvl(folder: Path) -> Path:
    words = {"start_image_token": "<img>", "end_image_token": "</img>"}
    words |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    template = TURNS.replace("IMAGE", "<IMG_CONTEXT>")
    tokenizer = byte_tokenizer(
        "<|im_start|>", "<|im_end|>", *words.values(), extra_special_tokens=words, chat_template=template
    )
    model = sized("internvl", "InternVLForConditionalGeneration", tokenizer, image_token_id="<IMG_CONTEXT>")
    tokens = int((SIDE // PATCH * model.config.downsample_ratio) ** 2)
    pixels = GotOcr2ImageProcessorPil(size=PIXELS, crop_to_patches=True, max_patches=4)
    return save(folder, model, tokenizer, pixels, "InternVLProcessor", image_seq_length=tokens)


def ovis2(folder: Path) -> Path:
    parts = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    template = TURNS.replace("IMAGE", "<image>")
    words = ("<|im_start|>", "<|im_end|>", "<image>", "<IMG_ATOM>", *parts)
    tokenizer = byte_tokenizer(*words, chat_template=template)
    config = tiny.build_config("ovis2", "Ovis2ForConditionalGeneration")
    config.text_config.vocab_size, config.image_token_id = len(tokenizer), tokenizer.convert_tokens_to_ids("<IMG_ATOM>")
    config.visual_indicator_token_ids = tokenizer.convert_tokens_to_ids(list(parts))
    model = tiny.build_from(config, "Ovis2ForConditionalGeneration")
    tokens = (SIDE // PATCH) ** 2 // config.vision_config.hidden_stride**2
    pixels = Ovis2ImageProcessorPil(size=PIXELS, crop_to_patches=False)
    return save(folder, model, tokenizer, pixels, "Ovis2Processor", image_seq_length=tokens)


def git(folder: Path) -> Path:
    tokenizer = byte_tokenizer(begins=True, ends=True)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=PIXELS)
    return save(folder, sized("git", "GitForCausalLM", tokenizer), tokenizer, pixels, "GitProcessor")


def blip_2(folder: Path) -> Path:
    tokenizer = byte_tokenizer("<image>", begins=True)
    model = sized("blip-2", "Blip2ForConditionalGeneration", tokenizer, image_token_index="<image>")
    queries = model.config.num_query_tokens
    return save(
        folder, model, tokenizer, BlipImageProcessorPil(size=PIXELS), "Blip2Processor", num_query_tokens=queries
    )


def instructblip(folder: Path) -> Path:
    tokenizer, asking = byte_tokenizer("<image>", begins=True), byte_tokenizer(begins=True, ends=True)
    config = tiny.build_config("instructblip", "InstructBlipForConditionalGeneration")
    config.text_config.vocab_size, config.qformer_config.vocab_size = len(tokenizer), len(asking)
    config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    model = tiny.build_from(config, "InstructBlipForConditionalGeneration")
    how, pixels = {"num_query_tokens": config.num_query_tokens}, BlipImageProcessorPil(size=PIXELS)
    save(folder, model, tokenizer, pixels, "InstructBlipProcessor", **how)
    asking.save_pretrained(folder / "qformer_tokenizer")
    return folder


def kosmos_2(folder: Path) -> Path:
    names = [f"<patch_index_{i:04d}>" for i in range(4)]
    parts = [f"<{end}{name}>" for name in ("image", "phrase", "object") for end in ("", "/")]
    tokenizer = byte_tokenizer(*parts, "</delimiter_of_multi_objects/>", "<grounding>", *names, begins=True, ends=True)
    model = sized("kosmos-2", "Kosmos2ForConditionalGeneration", tokenizer)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=PIXELS)
    return save(folder, model, tokenizer, pixels, "Kosmos2Processor", num_patch_index_tokens=len(names))


def mllama(folder: Path) -> Path:
    template = "{{ bos_token }}" + TURNS.replace("IMAGE", "<|image|>")
    tokenizer = byte_tokenizer("<|image|>", begins=True, chat_template=template)
    model = sized("mllama", "MllamaForConditionalGeneration", tokenizer, image_token_index="<|image|>")
    pixels = MllamaImageProcessorPil(size=PIXELS, max_image_tiles=model.config.vision_config.max_num_tiles)
    return save(folder, model, tokenizer, pixels, "MllamaProcessor")


def llava_next(folder: Path) -> Path:
    """Images are cut into tiles of several shapes."""
    tokenizer = byte_tokenizer("<image>", begins=True, padding_side="left", chat_template=USER)
    shapes = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = tiny.build_config("llava_next", "LlavaNextForConditionalGeneration")
    config.image_grid_pinpoints, config.text_config.vocab_size = shapes, len(tokenizer)
    config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    model = tiny.build_from(config, "LlavaNextForConditionalGeneration")
    edges = {"size": {"shortest_edge": SIDE}, "crop_size": PIXELS}
    pixels = LlavaNextImageProcessorPil(image_grid_pinpoints=shapes, **edges)
    how = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return save(folder, model, tokenizer, pixels, "LlavaNextProcessor", image_token="<image>", **how)


def got_ocr2(folder: Path) -> Path:
    tokenizer = byte_tokenizer("<imgpad>", "<img>", "</img>", "<|im_start|>", "<|im_end|>")
    model = sized("got_ocr2", "GotOcr2ForConditionalGeneration", tokenizer, image_token_id="<imgpad>")
    return save(folder, model, tokenizer, GotOcr2ImageProcessorPil(size=PIXELS), "GotOcr2Processor")


def pixtral(folder: Path) -> Path:
    words = ("[IMG]", "[IMG_BREAK]", "[IMG_END]", "<|im_start|>", "<|im_end|>")
    tokenizer = byte_tokenizer(*words, chat_template=TURNS.replace("IMAGE", "[IMG]"))
    model = sized("mistral3", "Mistral3ForConditionalGeneration", tokenizer, image_token_index="[IMG]")
    pixels = PixtralImageProcessorPil(size={"longest_edge": SIDE}, patch_size={"height": PATCH, "width": PATCH})
    return save(folder, model, tokenizer, pixels, "PixtralProcessor", patch_size=PATCH, spatial_merge_size=2)


def florence2(folder: Path) -> Path:
    tokenizer = byte_tokenizer("<image>", begins=True, ends=True, extra_special_tokens={"image_token": "<image>"})
    model = sized("florence2", "Florence2ForConditionalGeneration", tokenizer, image_token_id="<image>")
    pixels = CLIPImageProcessorPil(size=PIXELS, do_center_crop=False)
    pixels.image_seq_length = 17  # of both ways to pool the last stage
    return save(folder, model, tokenizer, pixels, "Florence2Processor")


def vision_encoder_decoder(folder: Path) -> Path:
    tokenizer = byte_tokenizer(ends=True)
    model = sized("vision-encoder-decoder", "VisionEncoderDecoderModel", tokenizer)
    return save(folder, model, tokenizer, ViTImageProcessorPil(size=PIXELS), "")


def vit_gpt2(folder: Path) -> Path:
    """A decoder whose tokenizer ends no text by itself, and fills up with the token that ends one."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    encoder = ViTConfig(image_size=SIDE, patch_size=PATCH, hidden_size=20, num_hidden_layers=1, num_attention_heads=1)
    decoder = GPT2Config(vocab_size=len(tokenizer), n_embd=24, n_layer=1, n_head=3, n_positions=128)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.pad_token_id, config.decoder_start_token_id = 2, 1
    model = tiny.build_from(config, "VisionEncoderDecoderModel")
    return save(folder, model, tokenizer, ViTImageProcessorPil(size=PIXELS), "")


def vilt(folder: Path) -> Path:
    tokenizer = byte_tokenizer(begins=True, ends=True)
    config = tiny.build_config("vilt", "ViltForQuestionAnswering")
    config.vocab_size, config.id2label = len(tokenizer), {0: "end", 1: "two"}
    model = tiny.build_from(config, "ViltForQuestionAnswering")
    pixels = ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=PATCH)
    return save(folder, model, tokenizer, pixels, "ViltProcessor")


def siglip_classifier(folder: Path) -> Path:
    config = tiny.build_config("siglip", "SiglipModel")
    config.id2label = {0: "circle", 1: "square"}
    model = tiny.build_from(config, "SiglipForImageClassification")
    return save(folder, model, byte_tokenizer(), SiglipImageProcessorPil(size=PIXELS), "")


TORCHVISION = find_spec("torchvision") is not None  # without it transformers has no processor of some types
SIX = ("clip", "siglip2", "llava", "qwen2_5_vl", "smolvlm", "paligemma")
OTHERS = (
    *("siglip", "git", "blip_2", "instructblip", "kosmos_2", "got_ocr2", "florence2", "vision_encoder_decoder"),
    *("vit_gpt2", "vilt", "internvl", "ovis2"),
    *["pixtral"] * TORCHVISION,
)
