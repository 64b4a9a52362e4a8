"""A sparse model of transformers for lmms-eval: ``--model multiflow --model_args pretrained=DIR,mask=FILE``.

Prompts, images, stop words and metrics are those of lmms-eval's tasks; the model is read through its own processor, as
everywhere in this library. Images are what it sees: tasks with videos or sound are refused in a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from lmms_eval.api.model import lmms
from PIL import Image

from multiflow.base.errors import MultiflowError, unknown
from multiflow.calibration import evaluating
from multiflow.data.examples import Sample
from multiflow.data.images import decode
from multiflow.families.automatic.processors import load_processor
from multiflow.families.automatic.reading import Reader, reader_of
from multiflow.families.automatic.tasks import refuse_unable
from multiflow.families.opening import find_device, find_dtype, find_model, load_model, quiet_transformers

LONGEST = 1024  # new tokens at most, where a task does not say
GENERATION = ("max_new_tokens", "temperature", "top_p", "num_beams", "do_sample")
UNUSED = ("max_batch_size",)  # that lmms-eval gives to every model


class Conversed(NamedTuple):
    """One request: its turns, their images, and what generation is told."""

    turns: list[dict[str, Any]]
    images: list[Image.Image]
    how: Mapping[str, Any]


class SparseModel(lmms):
    """A model with a mask.

    Args:
        pretrained: a Hugging Face id or folder; one that 'multiflow apply' wrote needs no mask.
        mask: a mask file, the folder of a run or a repository of masks; None = the model as it is.
        sparsity: which mask, where there are several.
        processor: folder or id of the processor, where it is not the model's own.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        batch_size: requests at once.
        system_prompt: a text, or a file with one, before every conversation.
        others: what is none of these is an error.

    Raises:
        MultiflowError: an unknown argument, no such model or mask, or a model that writes no texts.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        mask: str | None = None,
        sparsity: float | None = None,
        processor: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        system_prompt: str | None = None,
        trust_remote_code: bool = False,
        **others: Any,
    ) -> None:
        super().__init__()
        known = [name for name in signature(type(self)).parameters if name != "others"]
        for name in others:
            if name not in UNUSED:
                raise unknown("argument of the model 'multiflow'", name, known)
        place, kind = find_device(device), find_dtype(dtype)
        source = find_model(str(pretrained))
        with quiet_transformers():
            model: Any = load_model(source, masks=mask, sparsity=sparsity, trust_remote_code=trust_remote_code)
        refuse_unable(model, "vqa")
        self.model = model.to(device=place, dtype=kind)
        self.reader: Reader = reader_of(
            self.model, load_processor(processor, source, self.model, trust=trust_remote_code)
        )
        self.batch_size = 1 if batch_size == "auto" else int(batch_size)
        self.system_prompt = None if system_prompt is None else self._resolve_system_prompt(system_prompt)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return what the model writes for each request, up to the first of its stop words."""
        asked = [self._asked(*request.args) for request in requests]
        said = [""] * len(asked)
        for numbers in _alike([of.how for of in asked], self.batch_size):
            texts = self._write([asked[i] for i in numbers])
            for i, text in zip(numbers, texts, strict=True):
                said[i] = text
                self.cache_hook.add_partial("generate_until", (requests[i].args[0], requests[i].args[2]), text)
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return for each request the log-probability of its continuation, and whether it is the likeliest one."""
        return [self._likelihood(*request.args) for request in requests]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse tasks of several rounds."""
        raise MultiflowError("the model 'multiflow' answers in one round; choose tasks of 'generate_until'")

    def _asked(
        self, context: str, to_messages: Callable[..., Any], how: Any, doc: Any, task: str, split: str
    ) -> Conversed:
        messages = list(to_messages(self.task_dict[task][split][doc]))
        if self.system_prompt:
            messages = self._apply_system_prompt(messages, self.system_prompt)
        turns, images = [], []
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part["type"] not in ("text", "image"):
                    raise MultiflowError(
                        f"task '{task}' of lmms-eval asks about a {part['type']}; the model 'multiflow' takes images"
                    )
            images += [_picture(part["url"]) for part in parts if part["type"] == "image"]
            kept = [{"type": "image"} if part["type"] == "image" else dict(part) for part in parts]
            turns.append({"role": message["role"], "content": kept})
        return Conversed(turns, images, how)

    @torch.no_grad()
    def _write(self, asked: Sequence[Conversed]) -> list[str]:
        batch = self.reader.conversations([of.turns for of in asked], [of.images for of in asked])
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        with evaluating(self.model), quiet_transformers():
            pad = self.reader.tokenizer.pad_token_id
            found = self.model.generate(**batch, **_generation(asked[0].how), pad_token_id=pad)
        stops = asked[0].how.get("until") or ()
        stops = [stops] if isinstance(stops, str) else stops
        return [_until(text, stops) for text in self.reader.written(batch, found)]

    @torch.no_grad()
    def _likelihood(
        self, context: str, to_target: Any, to_visual: Callable[..., Any], doc: Any, task: str, split: str
    ) -> tuple[float, bool]:
        item = self.task_dict[task][split][doc]
        target = to_target if isinstance(to_target, str) else to_target(item)
        images = [_picture(image) for image in to_visual(item)]
        if len(images) != 1:
            raise MultiflowError(f"task '{task}' of lmms-eval has {len(images)} images an item; expected one")
        batch = self.reader.examples([Sample(images[0], target, context)])
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        with evaluating(self.model):
            logits = self.model(**batch).logits.float()
        labels = batch["labels"]
        if self.reader.manner != "sequence":  # a decoder alone predicts the next token
            logits, labels = logits[:, :-1], labels[:, 1:]
        real = labels != -100
        chosen, words = logits[:, -labels.shape[1] :][real].log_softmax(-1), labels[real]
        return float(chosen.gather(1, words[:, None]).sum()), bool((chosen.argmax(-1) == words).all())


def _generation(how: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``generate`` is told: at temperature 0 nothing is drawn."""
    given = {name: how[name] for name in GENERATION if how.get(name) is not None}
    draws = given.pop("do_sample", True) and given.get("temperature", 0) > 0
    if not draws:
        given = {name: value for name, value in given.items() if name not in ("temperature", "top_p")}
    return {"max_new_tokens": LONGEST, **given, "do_sample": draws}


def _until(text: str, stops: Iterable[str]) -> str:
    """Return a text up to the first stop word."""
    for stop in filter(None, stops):
        text = text.split(stop)[0]
    return text.strip()


def _alike(hows: Sequence[Mapping[str, Any]], size: int) -> list[list[int]]:
    """Return the numbers of requests that are told the same, at most ``size`` together."""
    groups: dict[str, list[int]] = {}
    for number, how in enumerate(hows):
        groups.setdefault(repr(sorted(how.items(), key=str)), []).append(number)
    return [numbers[i : i + size] for numbers in groups.values() for i in range(0, len(numbers), size)]


def _picture(given: Any) -> Image.Image:
    """Return an image of a task, whole and in RGB; lmms-eval gives Pillow images, arrays, or paths."""
    image = decode(Image.open(given) if isinstance(given, str) else given)
    return image if isinstance(image, Image.Image) else Image.fromarray(image)
