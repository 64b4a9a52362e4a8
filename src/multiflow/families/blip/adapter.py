"""BLIP: the pretraining model and the task models, and transformers' own for captioning, retrieval and questions.

The vision tower is one group, text encoder and decoder are the other; what those two share is one layer. Projections,
heads, embeddings and momentum copies stay dense. A text that is encoded with an image begins with [ENC], one that is
decoded with [DEC], as in the release; both are put in here, whatever the batch's first token is.

The loss of the pretraining and the retrieval model moves momentum copies and queues, which are buffers: buffers put
back after the last batch undo that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiflow.base.adapter import Adapter, TokenMasks, parts, require
from multiflow.base.errors import MultiflowError
from multiflow.data import Inputs, whole_images
from multiflow.families.automatic.adapter import automatic_adapter
from multiflow.families.batches import Counted, Source, open_source, pair_batches
from multiflow.families.blip.contrastive import ContrastiveBlip
from multiflow.families.opening import fitting_tokenizer, pixel_statistics
from multiflow.families.pairs import PairScoring

KEYS = ("pixel_values", "input_ids", "attention_mask")
ANSWERS = ("answer_ids", "answer_mask", "answer_weights", "answers_per_question")
GROUPS = {"vision": r"^vision_model\.encoder\.", "text": r"^text_(encoder|decoder\.bert)\.encoder\."}
SOURCE = r"crossattention\.self\.(key|value)$"  # these read what the text attends to
STREAMS = {SOURCE: "image", r"^text_": "text"}
ANSWER_STREAMS = {rf"^text_decoder\..*{SOURCE}": "text", r"^text_decoder\.": "answer", **STREAMS}
QUESTION_STREAMS = {rf"^text_decoder\..*{SOURCE}": "question", r"^text_decoder\.": "answer", **STREAMS}
LABEL_SMOOTHING = 0.1
TEMPERATURE = 0.07  # of the pretraining; transformers' retrieval model does not keep it


def pretraining(model: nn.Module) -> Adapter:
    """Build the adapter of a ``BlipForPretraining``."""
    return Adapter(
        groups=GROUPS,
        forward=_pretraining_forward,
        loss=_pretraining_loss,
        streams=STREAMS,
        token_masks=_text_mask,
        idle=_idle,
        forward_moves_buffers=False,
        outputs=_compared,
        name="blip-pretraining",
    )


def retrieval(model: nn.Module) -> Adapter:
    """Build the adapter of a ``BlipForRetrieval``."""
    return Adapter(
        groups=GROUPS,
        forward=_retrieval_forward,
        loss=lambda model, batch: model(**_take(batch, "image_ids"), alpha=0.0).loss,
        streams=STREAMS,
        token_masks=_text_mask,
        idle=_idle,
        outputs=_compared,
        name="blip-retrieval",
    )


def captioning(model: nn.Module) -> Adapter:
    """Build the adapter of a ``BlipForCaptioning``; where a batch has no ``labels``, every real token counts."""
    return Adapter(
        groups=GROUPS,
        forward=lambda model, batch: model(**_take(batch)),
        loss=_captioning_loss,
        streams=STREAMS,
        token_masks=_text_mask,
        name="blip-captioning",
    )


def vqa(model: nn.Module) -> Adapter:
    """Build the adapter of a ``BlipForVQA``."""
    return Adapter(
        groups=GROUPS,
        forward=lambda model, batch: model(**_take(batch, *ANSWERS)),
        loss=lambda model, batch: model(**_take(batch, *ANSWERS)).loss,
        streams=QUESTION_STREAMS,
        token_masks=_question_masks,
        name="blip-vqa",
    )


def of_transformers(model: nn.Module) -> Adapter:
    """Build the adapter of transformers' BLIP, which is told by its parts.

    ``BlipForConditionalGeneration`` has a decoder that sees the image: its loss is LM. ``BlipForImageTextRetrieval``
    has an encoder: its loss is ITC + ITM within the batch, the negatives being the most similar wrong pairs.
    ``BlipForQuestionAnswering`` has both, and the decoder sees the encoder's states: its loss is LM of the answers,
    ``labels`` (padding -100 or [PAD]); where a batch has none, the text itself is decoded. (transformers 5.23 drops the
    mask of that cross-attention, so there the decoder sees padded questions with their padding, as in its own forward.)
    """
    encodes, decodes = hasattr(model, "text_encoder"), hasattr(model, "text_decoder")
    if not (hasattr(model, "vision_model") and (encodes or decodes)):  # BlipModel, two towers without cross-attention
        return automatic_adapter(model)
    answers = encodes and decodes
    return Adapter(
        groups=GROUPS,
        forward=_run,
        loss=_language_loss if decodes else _retrieval_loss,
        streams=ANSWER_STREAMS if answers else STREAMS,
        token_masks=_answer_masks(model) if answers else _text_mask,
        name="blip",
    )


def _take(batch: Mapping[str, Any], *more: str) -> dict[str, Any]:
    require(batch, *KEYS)
    return {key: batch[key] for key in (*KEYS, *more) if key in batch}


def _text_mask(batch: Mapping[str, Any]) -> dict[str, Tensor | None]:
    require(batch, *KEYS)
    return {"text": batch["attention_mask"].bool(), "image": None}


def _answer_masks(model: Any) -> TokenMasks:
    return lambda batch: {**_text_mask(batch), "answer": _answers(model, batch)[1].bool()}


def _pretraining_forward(model: Any, batch: Mapping[str, Any]) -> None:
    """Image encoder, grounded text encoder, grounded decoder: each once, no losses."""
    model.calibration_forward(**_take(batch, "region"))


def _compared(model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the pairs of a batch are found to be."""
    return model.compared(**_take(batch, "region"))


def _pretraining_loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """ITC without soft targets + ITM + LM; a general and a region batch count half each."""
    return torch.stack([model(**_take(part), alpha=0.0).loss for part in parts(batch)]).mean()


def _retrieval_forward(model: Any, batch: Mapping[str, Any]) -> None:
    """Image encoder and grounded text encoder, as in pretraining: each once, no losses."""
    require(batch, *KEYS)
    model.ground(batch["input_ids"], batch["attention_mask"], model.encode_image(batch["pixel_values"]))


def _captioning_loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    given = _take(batch, "labels")
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    return model(**{"labels": labels, **given}).loss


def _question_masks(batch: Mapping[str, Any]) -> dict[str, Tensor | None]:
    require(batch, *KEYS, "answer_mask")
    question = batch["attention_mask"].bool()
    count = batch.get("answers_per_question", 1)
    return {
        "text": question,
        "image": None,
        "question": question.repeat_interleave(torch.as_tensor(count, device=question.device), dim=0),
        "answer": batch["answer_mask"].bool(),
    }


def _idle(model: Any) -> None:
    model.idle()


def _run(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run what there is of image encoder, grounded text encoder and decoder, each once, and return their states."""
    require(batch, *KEYS)
    images = source = model.vision_model(pixel_values=batch["pixel_values"].to(model.dtype)).last_hidden_state
    text, mask = model.config.text_config, batch["attention_mask"]
    encoded = decoded = source_mask = None
    if hasattr(model, "text_encoder"):
        source = encoded = model.text_encoder(
            input_ids=_begin(batch["input_ids"], _encoder_token(text)),
            attention_mask=mask,
            encoder_hidden_states=images,
        ).last_hidden_state
        source_mask = mask
    if hasattr(model, "text_decoder"):
        ids, mask = _answers(model, batch) if encoded is not None else (batch["input_ids"], mask)
        decoded = model.text_decoder.bert(
            input_ids=_begin(ids, _known(text, "bos_token_id", text.bos_token_id)),
            attention_mask=mask,
            encoder_hidden_states=source,
            encoder_attention_mask=source_mask,
            is_decoder=True,
            use_cache=False,
        ).last_hidden_state
    return images, encoded, decoded


def _language_loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """LM with smoothed labels; a general and a region batch count half each."""
    losses = []
    for part in parts(batch):
        _, encoded, decoded = _run(model, part)
        logits = model.text_decoder.cls(decoded)[:, :-1].float()
        if encoded is None and "labels" in part:
            target = part["labels"]
        else:
            ids, mask = (part["input_ids"], part["attention_mask"]) if encoded is None else _answers(model, part)
            target = ids.masked_fill(mask == 0, -100)
        losses.append(F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), label_smoothing=LABEL_SMOOTHING))
    return torch.stack(losses).mean()


def _retrieval_loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """ITC and ITM of the batch's pairs; a batch of one has no negatives."""
    return torch.stack([_pair_loss(model, part) for part in parts(batch)]).mean()


def _pair_loss(model: Any, batch: Mapping[str, Any]) -> Tensor:
    images, grounded, _ = _run(model, batch)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    texts = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    image_feat = F.normalize(model.vision_proj(images[:, 0]).float(), dim=-1)
    text_feat = F.normalize(model.text_proj(texts[:, 0]).float(), dim=-1)
    sim = image_feat @ text_feat.T / TEMPERATURE
    own = torch.arange(len(ids), device=ids.device)
    contrastive = (F.cross_entropy(sim, own) + F.cross_entropy(sim.T, own)) / 2

    states = [grounded[:, 0]]  # type: ignore[index]
    if len(ids) > 1:
        wrong = sim.detach().clone().fill_diagonal_(-torch.inf)
        rows, image = torch.cat([own, wrong.argmax(1)]), torch.cat([wrong.argmax(0), own])
        pairs = {"input_ids": _begin(ids, _encoder_token(model.config.text_config))[rows], "attention_mask": mask[rows]}
        states.append(model.text_encoder(**pairs, encoder_hidden_states=images[image]).last_hidden_state[:, 0])
    else:
        warnings.warn("a batch of one pair has no hard negatives: ITM counts the pair alone", stacklevel=4)
    logits = model.itm_head(torch.cat(states)).float()
    return contrastive + F.cross_entropy(logits, (torch.arange(len(logits), device=ids.device) < len(ids)).long())


def _answers(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    if "labels" not in batch:
        return batch["input_ids"], batch["attention_mask"]
    pad = model.config.text_config.pad_token_id
    labels = batch["labels"]
    mask = ((labels != -100) & (labels != pad)).long()
    return labels.masked_fill(mask == 0, pad), mask


def _encoder_token(text: Any) -> int:
    """[ENC], which the release's tokenizer has behind [DEC]; the configs of transformers do not name it."""
    return _known(text, "enc_token_id", getattr(text, "enc_token_id", text.bos_token_id + 1))


def _known(text: Any, name: str, token: int) -> int:
    if not 0 <= token < text.vocab_size:
        raise MultiflowError(
            f"{name} is {token}, but the model embeds {text.vocab_size} tokens; set config.text_config.{name}"
        )
    return token


def _begin(input_ids: Tensor, token: int) -> Tensor:
    return torch.cat([torch.full_like(input_ids[:, :1], token), input_ids[:, 1:]], dim=1)


MOST_TOKENS = 30  # of a calibration text, as published


def calibration_pairs(model: Any, place: str, source: Source) -> Counted:
    """Make calibration batches for our BLIP; of regions it sees the whole image and one of its captions."""
    text = model.config.text
    return _pairs(place, source, model.config.image_size, text["vocab_size"], text["max_position_embeddings"])


def calibration_pairs_of_transformers(model: Any, place: str, source: Source) -> Counted:
    """Make calibration batches for the BLIP models of transformers; as `calibration_pairs`."""
    text, size = model.config.text_config, model.config.vision_config.image_size
    return _pairs(place, source, size, text.vocab_size, text.max_position_embeddings)


def _pairs(place: str, source: Source, size: int, vocabulary: int, positions: int) -> Counted:
    inputs = Inputs(
        fitting_tokenizer(source.tokenizer, place, vocabulary),
        size,
        max_length=min(MOST_TOKENS, positions),
        mlm=False,
        end=True,
        augment=source.augment,
        **pixel_statistics(place),
    )
    return pair_batches(whole_images(open_source(source, size)), inputs, source)


def _ground(model: ContrastiveBlip, kept: Tensor, mask: Tensor, images: Tensor, image_index: Tensor) -> Tensor:
    return model.ground(kept, mask, images[image_index])[:, 0]


SCORING = PairScoring(
    keep=lambda ids, embeds: ids,
    match=_ground,
    adds_cosine=True,
)
