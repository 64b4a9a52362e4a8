"""What a model of transformers can be asked to do, as it is: compare images with texts, write texts, or classify."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multiflow.base.errors import MultiflowError
from multiflow.families.automatic.adapter import find_loss
from multiflow.families.automatic.listening import Listener, hears, listener_of, refuse_prompt
from multiflow.families.automatic.processors import load_processor, takes
from multiflow.families.automatic.reading import Reader, reader_of
from multiflow.families.family import Places
from multiflow.families.opening import PROCESSOR_FILES, TOKENIZER_FILES, Preprocessing, model_files


def tasks_of(model: Any) -> tuple[str, ...]:
    """Return the tasks that a model of transformers is able to do without new layers."""
    if hears(model):
        return ("transcription",)
    if not takes(model, "input_ids", "decoder_input_ids"):
        return ("classification",) if takes(model, "labels") else ()
    if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
        return ("retrieval", "classification")
    return ("captioning", "vqa") if model.can_generate() else ()


def refuse_unable(model: Any, task: str) -> None:
    """Raise an error where a model cannot do a task, which says what it can do."""
    able = tasks_of(model)
    if task not in able:
        needs = {
            "retrieval": "compares images with texts, such as CLIP",
            "classification": "compares images with texts, such as CLIP, or has classes of its own",
            "transcription": "writes what is said in a sound, such as Whisper",
        }.get(task, "writes texts about images, such as LLaVA")
        raise MultiflowError(
            f"task '{task}' takes a model that {needs}; a {type(model).__name__} can do {' and '.join(able) or 'none'}"
        )


def trained_as_it_is(task: str) -> Callable[[Any], tuple[Any, Places]]:
    """Return the builder of a task's model that is the pretrained one itself, a copy of it."""

    def build(model: Any) -> tuple[Any, Places]:
        refuse_unable(model, task)
        return deepcopy(model), {}  # every layer is where it was

    return build


RETRIEVAL, CAPTIONING, VQA, CLASSIFICATION, TRANSCRIPTION = map(
    trained_as_it_is, ("retrieval", "captioning", "vqa", "classification", "transcription")
)


def preprocessing_of(
    place: str, model: Any, processor: Any = None, prompt: str | None = None, trust_remote_code: bool = False
) -> Preprocessing:
    """Load how a model reads; the files of its processor go along with it into the folder of a fine-tuned model."""
    source = processor if isinstance(processor, str | Path) else place
    reader: Reader | Listener
    if hears(model):
        refuse_prompt(model, prompt)
    loaded = load_processor(processor, place, model, trust=trust_remote_code)
    reader = listener_of(model, loaded) if hears(model) else reader_of(model, loaded, prompt=prompt)
    return Preprocessing(reader, model_files(str(source), (*TOKENIZER_FILES, *PROCESSOR_FILES)))


def image_features(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, "images dim"]:
    """Return the unit vectors of images that are compared with those of texts."""
    return _features(model, model.get_image_features, batch)


def text_features(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, "texts dim"]:
    """Return the unit vectors of texts that are compared with those of images."""
    return _features(model, model.get_text_features, batch)


def _features(model: Any, of: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
    found = of(**{name: value.to(model.device) for name, value in batch.items()})
    pooled = found if isinstance(found, Tensor) else found.pooler_output
    return F.normalize(pooled.float(), dim=-1)


def pairs_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the loss that a model's adapter declares, of a batch of samples."""
    loss = find_loss(model)
    if loss is None:
        raise MultiflowError(f"a {type(model).__name__} has no loss that it could be trained with on pairs")
    return loss(model, batch)
