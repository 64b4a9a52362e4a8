"""Which tokens of a layer's input are real, for models of transformers.

Padding is read from the masks that a batch carries by transformers' own conventions, and laid over a layer's input by
its shape when the layer runs: a mask ``(B, L)`` fits an input ``(B, L, in)`` or ``(B * L, in)``. Where an input is
longer than the mask (image and text in one sequence) or patches are regrouped on the way, the mask follows by the
model's own rule. An input that no mask fits is an error, unless nothing is padded at all: nothing is guessed.

Streams: ``text`` (what the language model reads, image tokens inside it included), ``decoder`` (of an encoder-decoder),
``source`` (what cross-attention reads), ``image`` (patches), ``connector``, ``audio``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError, unknown
from multiflow.families.automatic.roles import AUDIO, CONNECTOR, CROSS, FUSION, PROTEIN, TEXT, VISION, Roles

SOURCE = re.compile(r"(^|_)(k|v|kv|key|value)(_|$)|^(to_kv|wk|wv|c_attn)$", re.I)
STREAMS = ("text", "decoder", "source", "image", "connector", "audio", PROTEIN)
TOKENS = ("all", "text", "image")
IMAGE_FIRST = ("git", "flava")  # the image's tokens stand before the text's in one sequence
TEXT_FIRST = ("visual_bert", "layoutlmv3")  # the other way round
SIDE_BY_SIDE = ("lxmert",)  # layers that take now the text's sequence, now the image's
TEXT_BETWEEN = re.compile(r"(^|\.)text_to_\w+$")
"""Projections of the text into what sees both."""
IMAGE_TOKENS = ("image_token_id", "image_token_index", "image_token", "im_patch_id")
AUDIO_MASKS = ("input_features_mask", "feature_attention_mask", "audio_input_ids_mask", "input_values_mask")


LATENTS: dict[str, Callable[[Any, int], int | None]] = {
    "idefics2": lambda config, patches: config.perceiver_config.resampler_n_latents,
    "aria": lambda config, patches: config.projector_patch_to_query_dict.get(patches),
    "kosmos-2.5": lambda config, patches: config.latent_query_num,
    "evolla": lambda config, patches: config.resampler_num_latents,
}
"""Type -> how many learnt queries look at so many patches (or parts of a protein)."""


Derive = Callable[[tuple[int, ...], Tensor], Tensor | None]
"""``f(lead, mask)``: a mask of the shape ``lead`` of an input without its last dimension, or None."""


def find_streams(model: Any, roles: Roles) -> dict[str, str]:
    """Return path of a layer -> stream whose padding its input follows."""
    decoder = decoder_path(model)
    found = {}
    for group, paths in roles.groups.items():
        for path in paths:
            found[path] = _stream(path, group, decoder)
    return found


def decoder_path(model: Any) -> str | None:
    """Return the path of the decoder of an encoder-decoder, where that is a part of its own."""
    paths = {id(module): path for path, module in model.named_modules()}
    for module in model.modules():
        decoder, encoder = module._modules.get("decoder"), module._modules.get("encoder")
        if isinstance(decoder, nn.Module) and isinstance(encoder, nn.Module) and hasattr(decoder, "config"):
            return paths[id(decoder)]
    return None


def _stream(path: str, group: str, decoder: str | None) -> str:
    if group in (TEXT, FUSION):
        *before, leaf = path.split(".")
        if (any(CROSS.search(part) for part in before) or leaf.endswith(f"_{PROTEIN}")) and SOURCE.search(leaf):
            return "source"
        return "decoder" if decoder and path.startswith(f"{decoder}.") else "text"
    if group == CONNECTOR and TEXT_BETWEEN.search(path):
        return "text"
    return {VISION: "image", CONNECTOR: "connector", AUDIO: "audio", PROTEIN: PROTEIN}.get(group, "text")


class Choice:
    """Chooses the mask of a stream that fits a layer's input, among those that a batch carries.

    Args:
        stream: its name, for errors.
        masks: bool, True = real; the first that fits counts.
        derive: ``f(lead, mask)``: makes a mask of the shape ``lead`` of an input without its last dimension out of one
            that does not fit, or gives None.
        fills: whether the model puts padding of its own beside what the masks cover.
    """

    def __init__(
        self,
        stream: str,
        masks: Iterable[Tensor | None],
        derive: Derive | None = None,
        fills: bool = False,
    ) -> None:
        self._stream, self._derive = stream, derive
        self._masks = [mask.bool() for mask in masks if mask is not None]
        self._padded = fills or any(not bool(mask.all()) for mask in self._masks)
        self._made: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, path: str, value: Tensor) -> Tensor | None:
        """Return the mask of an input ``(..., in)``, or None where all of it is real."""
        if not self._padded:
            return None
        lead = tuple(value.shape[:-1])
        if lead not in self._made:
            self._made[lead] = self._find(path, lead)
        return self._made[lead]

    def _find(self, path: str, lead: tuple[int, ...]) -> Tensor:
        fitting = [found for mask in self._masks if (found := _laid(mask, lead)) is not None]
        if not fitting and self._derive:
            fitting = [found for mask in self._masks if (found := self._derive(lead, mask)) is not None]
        if not fitting:
            shapes = ", ".join(str(tuple(mask.shape)) for mask in self._masks)
            raise MultiflowError(
                f"the input of layer '{path}' has shape {(*lead, 'in')}, and no mask of its stream '{self._stream}' "
                f"fits it (they have {shapes}), so that padding cannot be told; take batches without padding, leave "
                f"the layer dense with exclude=r'^{re.escape(path)}$', or declare its tokens with mf.Adapter(streams="
                "..., token_masks=...)"
            )
        if any(not torch.equal(fitting[0], other) for other in fitting[1:]):
            raise MultiflowError(
                f"two masks of stream '{self._stream}' fit the input {(*lead, 'in')} of layer '{path}' and differ; "
                "take batches in which the two sequences have different lengths"
            )
        return fitting[0]


def _laid(mask: Tensor, lead: tuple[int, ...]) -> Tensor | None:
    """Lay a mask over an input: its own shape, neighbouring dimensions merged, or more dimensions behind."""
    shape = tuple(mask.shape)
    if lead[: len(shape)] == shape:
        return mask.reshape(shape + (1,) * (len(lead) - len(shape))).expand(lead)
    merged, at = [], 0
    for size in lead:  # each is the product of some dimensions of the mask in a row
        product = 1
        while at < len(shape) and (product < size or (product == size and shape[at] == 1)):
            product *= shape[at]
            at += 1
        merged.append(product)
    return mask.reshape(lead) if at == len(shape) and tuple(merged) == lead else None


def find_token_masks(model: Any, groups: Iterable[str], tokens: str = "all") -> Callable[[Any], Mapping[str, Any]]:
    """Return ``f(batch) -> {stream: Choice}`` for a transformers model.

    Args:
        model: the model; its config names the image token and the sizes of patches.
        groups: those of its layers; without a language model the text goes through the connector (BLIP-2's Q-Former).
        tokens: which tokens of the language model's stream count: ``all``, ``text`` or ``image``.
    """
    if tokens not in TOKENS:
        raise unknown("tokens", tokens, TOKENS)
    config = getattr(model.config, "vlm_config", model.config)  # of retrievers such as ColPali
    type_ = getattr(config, "model_type", "")
    has_decoder = decoder_path(model) is not None
    merged = has_decoder and not any(CROSS.search(path) for path, _ in model.named_modules())
    of_sound = _sound_rule(model, type_)
    encodes_text = has_decoder and "input_ids" in inspect.signature(model.forward).parameters

    def masks(batch: Any) -> Mapping[str, Any]:
        if not isinstance(batch, Mapping):
            return dict.fromkeys(STREAMS)
        image = _image_masks(config, batch)
        sounds = _sound_masks(batch)
        text = None if "flattened_patches" in batch and "input_ids" not in batch else _text_mask(config, batch, tokens)
        joint = _joint_rule(config, type_, batch, tokens)
        of_decoder = [_decoder_mask(config, batch), text if merged else None] if has_decoder else [text]
        protein = batch.get("protein_attention_mask")
        between = [*image, *sounds, protein, batch.get("qformer_attention_mask"), None if TEXT in groups else text]
        return {
            "text": Choice("text", [text, *(image if type_ in SIDE_BY_SIDE else ())], joint),
            PROTEIN: Choice(PROTEIN, [protein]),
            "decoder": Choice("decoder", of_decoder),
            "source": Choice("source", sounds or ([text] if encodes_text else image), of_sound if sounds else joint),
            "image": Choice("image", image, _image_rule(config, type_, batch), fills=type_ == "mllama" and bool(image)),
            "connector": Choice("connector", between, of_sound if sounds else _connector_rule(config, type_, batch)),
            "audio": Choice("audio", sounds or [batch.get(name) for name in AUDIO_MASKS], of_sound),
        }

    return masks


def _sound_masks(batch: Mapping[str, Any]) -> list[Tensor]:
    """Which moments of a sound are real, for models that take nothing else: ``attention_mask`` (B, samples)."""
    if "input_ids" in batch or not ({"input_features", "input_values", "inputs"} & batch.keys()):
        return []
    mask = batch.get("attention_mask")
    return [mask] if isinstance(mask, Tensor) and mask.dim() == 2 else []


def _sound_rule(model: Any, type_: str) -> Derive:
    """Shorten the mask of a sound as the model's convolutions shorten the sound; what is real comes first."""
    ways = [of for module in model.modules() if (of := getattr(module, "_get_feat_extract_output_lengths", None))]

    def shortened(lead: tuple[int, ...], mask: Tensor) -> Tensor | None:
        if len(lead) != 2 or lead[0] != len(mask) or lead[1] >= mask.shape[1]:
            return None
        if type_ == "moonshine":  # it takes every 384th sample of the mask
            taken = mask[:, :: 64 * 3 * 2][:, : lead[1]]
            return taken if tuple(taken.shape) == lead else None
        lengths = mask.sum(1)
        longest = torch.full_like(lengths, mask.shape[1])
        for way in ways:
            for options in ({}, {"add_adapter": False}):
                try:
                    whole, real = (way(of.clone(), **options) for of in (longest, lengths))
                except TypeError:
                    continue
                if (whole == lead[1]).all():
                    return torch.arange(lead[1], device=mask.device) < real.to(mask.device)[:, None]
        return None

    return shortened


def _text_mask(config: Any, batch: Mapping[str, Any], tokens: str) -> Tensor | None:
    """What of the text is real: ``attention_mask`` (B, L), and of that the tokens asked for."""
    mask = batch.get("attention_mask")
    mask = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
    if tokens == "all":
        return mask
    ids = batch.get("input_ids")
    image = next((token for name in IMAGE_TOKENS if (token := getattr(config, name, None)) is not None), None)
    if ids is None or image is None:
        raise MultiflowError(
            f"tokens='{tokens}' was given, but nothing tells the image's tokens from the text's: "
            + ("the batch has no 'input_ids'" if ids is None else f"the config of a {config.model_type} names no token")
            + "; take tokens='all'"
        )
    wanted = (ids == image) if tokens == "image" else (ids != image)
    return wanted if mask is None else mask & wanted


def _decoder_mask(config: Any, batch: Mapping[str, Any]) -> Tensor | None:
    """What of a decoder's input is real: its mask, else what is no padding in its ids or in the labels before."""
    if isinstance(mask := batch.get("decoder_attention_mask"), Tensor):
        return mask
    ids, pad = batch.get("decoder_input_ids"), getattr(config, "pad_token_id", None)
    if isinstance(ids, Tensor):
        real = ids != (-1 if pad is None or pad == getattr(config, "eos_token_id", None) else pad)
    elif isinstance(labels := batch.get("labels"), Tensor) and labels.dim() == 2:
        real = torch.cat([labels[:, :1] == labels[:, :1], labels[:, :-1] != -100], dim=1)  # shifted by one
    else:
        return None
    return torch.cat([torch.ones_like(real[:, :1]), real[:, 1:]], dim=1)  # the first token begins the text


def _image_masks(config: Any, batch: Mapping[str, Any]) -> list[Tensor | None]:
    """Which patches or which images are real."""
    vision = getattr(config, "vision_config", config)
    found: list[Tensor | None] = []
    pixels = batch.get("pixel_values")
    if isinstance(patches := batch.get("flattened_patches"), Tensor):
        given = batch.get("attention_mask") if "input_ids" not in batch else None
        found.append((patches != 0).any(-1) if given is None else given)
    if isinstance(tiles := batch.get("aspect_ratio_mask"), Tensor):
        ids = batch.get("aspect_ratio_ids")
        found.append(tiles.bool() if ids is None else tiles.bool() & (ids > 0)[..., None])
    if isinstance(slots := batch.get("image_attention_mask"), Tensor) and slots.dim() == 3:
        found.append(slots.bool().any(1))  # an image that no token sees fills a slot
    if isinstance(regions := batch.get("visual_feats", batch.get("visual_embeds")), Tensor):
        given = batch.get("visual_attention_mask")
        found.append(torch.ones_like(regions[..., 0], dtype=torch.bool) if given is None else given.bool())
    for name in ("image_position_ids", "video_position_ids"):
        if isinstance(ids := batch.get(name), Tensor):
            found.append((ids != -1).any(-1))
    mask = next(
        (m for m in (batch.get("pixel_attention_mask"), batch.get("pixel_mask")) if isinstance(m, Tensor)), None
    )
    if mask is None or not isinstance(pixels, Tensor):
        return found
    if mask.dim() == 2:  # of patches; of whole images the model drops those that are padding itself
        return [*found, mask] if pixels.dim() == 3 else found
    if mask.dim() == 4:  # (B, images, H, W): images of zeros fill slots, and the model drops them
        real = (pixels != 0).flatten(2).any(-1).flatten()
        mask = mask.flatten(0, 1)[real]
    size = vision.patch_size
    blocks = mask.bool().unfold(1, size, size).unfold(2, size, size).flatten(3)
    whole = getattr(config, "model_type", "") == "idefics2"
    return [*found, (blocks.all(-1) if whole else blocks.any(-1)).flatten(1)]


def _spread(lead: tuple[int, ...], mask: Tensor) -> Tensor | None:
    """Lay a mask of whole images or tiles over their patches, ``(images, patches)`` or ``(B, images * patches)``."""
    if len(lead) != 2:
        return None
    if lead[0] == mask.numel():
        return mask.reshape(-1, 1).expand(lead)
    slots = mask.flatten(1)
    return slots.repeat_interleave(lead[1] // slots.shape[1], 1) if lead == _multiple(lead, slots) else None


def _multiple(lead: tuple[int, ...], slots: Tensor) -> tuple[int, ...]:
    return (slots.shape[0], lead[1] // slots.shape[1] * slots.shape[1])


def _image_rule(config: Any, type_: str, batch: Mapping[str, Any]) -> Derive | None:
    if type_ != "mllama":
        return _spread if type_ == "idefics" else None
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1

    def tiles(lead: tuple[int, ...], mask: Tensor) -> Tensor | None:
        count = mask.shape[-1]
        if len(lead) != 2 or lead[0] * count != mask.numel() or lead[1] % count:
            return None
        each = lead[1] // count  # patches of a tile, and what fills them up to a multiple of 8
        real = torch.arange(each, device=mask.device) < patches
        return (mask.reshape(lead[0], count, 1) & real).flatten(1)

    return tiles


def _connector_rule(config: Any, type_: str, batch: Mapping[str, Any]) -> Derive | None:
    factor = getattr(config, "scale_factor", None) or getattr(config, "pixel_shuffle_factor", None)
    if isinstance(factor, int):  # squares of patches become one token, as in SmolVLM

        def shuffled(lead: tuple[int, ...], mask: Tensor) -> Tensor | None:
            by, side = factor, round(mask.shape[1] ** 0.5)
            if side % by or lead != (len(mask), (side // by) ** 2):
                return None
            return mask.reshape(-1, side // by, by, side // by, by).any(4).any(2).flatten(1)

        return shuffled
    if type_ in LATENTS:  # beside the patches, or alone
        return lambda lead, mask: _with_queries(lead, mask, after=True, queries=LATENTS[type_](config, mask.shape[1]))
    if type_ in ("blip-2", "instructblip", "instructblipvideo"):
        return lambda lead, mask: _with_queries(lead, mask, queries=config.num_query_tokens)
    if type_ in ("lfm2_vl", "gemma4"):  # padding is dropped before
        return lambda lead, mask: torch.ones(lead, dtype=torch.bool, device=mask.device)
    return _spread if type_ == "idefics" else None


def _with_queries(
    lead: tuple[int, ...], mask: Tensor, *, after: bool = False, queries: int | None = None
) -> Tensor | None:
    """Put learnt queries, which are all real, before or behind what a mask covers; or take them alone."""
    if len(lead) != 2 or lead[0] % len(mask):
        return None
    mask = mask.repeat_interleave(lead[0] // len(mask), 0)
    more = lead[1] - mask.shape[1]
    if more == 0:
        return mask
    ones = torch.ones((lead[0], lead[1] if more < 0 else more), dtype=torch.bool, device=mask.device)
    if more < 0 or (queries is not None and more != queries):
        return torch.ones(lead, dtype=torch.bool, device=mask.device)
    return torch.cat([mask, ones] if after else [ones, mask], 1)


def _joint_rule(config: Any, type_: str, batch: Mapping[str, Any], tokens: str) -> Derive | None:
    """Masks of sequences that hold the image's tokens beside those that ``attention_mask`` covers."""
    if type_ in ("mllama", "idefics"):
        return _spread
    if type_ in IMAGE_FIRST:

        def image_first(lead: tuple[int, ...], mask: Tensor) -> Tensor | None:
            if len(lead) != 2 or lead[0] != len(mask) or lead[1] <= mask.shape[1]:
                return None
            image = torch.full((lead[0], lead[1] - mask.shape[1]), tokens != "text", device=mask.device)
            return torch.cat([image, mask], 1)

        return image_first
    if type_ in TEXT_FIRST:

        def text_first(lead: tuple[int, ...], mask: Tensor) -> Tensor | None:
            if len(lead) != 2 or lead[0] != len(mask) or lead[1] <= mask.shape[1]:
                return None
            image = torch.ones((lead[0], lead[1] - mask.shape[1]), dtype=torch.bool, device=mask.device)
            seen = batch.get("visual_attention_mask")
            image = image if seen is None else seen.bool()
            return (
                torch.cat([mask, image & (tokens != "text")], 1) if image.shape[1] + mask.shape[1] == lead[1] else None
            )

        return text_first
    if type_ == "vilt":

        def patches_last(lead: tuple[int, ...], mask: Tensor) -> Tensor | None:
            size, pixels = config.patch_size, batch["pixel_values"]
            pixel_mask = batch.get("pixel_mask")
            if pixel_mask is None:
                pixel_mask = torch.ones_like(pixels[:, 0])
            grid = (pixels.shape[2] // size, pixels.shape[3] // size)
            found = torch.nn.functional.interpolate(pixel_mask[:, None].float(), size=grid).long().flatten(1)
            count = (
                lead[1] - mask.shape[1]
            )  # [CLS] and the longest image's patches; of shorter ones random repeats fill
            if len(lead) != 2 or lead[0] != len(mask) or count < 2:
                return None
            image = torch.arange(count, device=mask.device) <= found.sum(1, keepdim=True)
            return torch.cat([mask, image & (tokens != "text")], 1)

        return patches_last
    if type_ == "udop":  # patches that no word covers stand behind the words, and padding behind them

        def free_patches_last(lead: tuple[int, ...], mask: Tensor) -> Tensor | None:
            if len(lead) != 2 or lead[0] != len(mask) or lead[1] <= mask.shape[1]:
                return None
            side = config.image_size // config.patch_size
            box = batch["bbox"].float()
            cells = ((box[..., :2] + box[..., 2:]) / 2 * side).floor().long().clip(0, side - 1)
            covered = torch.tensor([len(set(row)) for row in (cells[..., 0] + cells[..., 1] * side).tolist()])
            image = torch.arange(lead[1] - mask.shape[1]) < (side**2 - covered)[:, None]
            return torch.cat([mask, image.to(mask.device) & (tokens != "text")], 1)

        return free_patches_last
    if type_ == "videoprism":  # [CLS] stands behind the words
        return lambda lead, mask: _with_queries(lead, mask, after=True)
    return None
