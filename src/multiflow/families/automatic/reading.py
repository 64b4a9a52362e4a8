"""How any model of transformers reads images and texts: through its own processor, in the way its class is trained.

Seven manners, told by the model's forward and by its processor:

- ``pairs``: a dual encoder or another model without labels: image and caption side by side;
- ``chat``: a model with a chat template: image and prompt are the user's turn, the text is the assistant's;
- ``suffix``: a processor that takes prompt and answer apart (PaliGemma);
- ``plain``: image, prompt and text in one line (GIT, BLIP-2, Kosmos-2);
- ``sequence``: an encoder reads image and prompt, a decoder writes the text (Florence-2, Pix2Struct, Donut);
- ``answers``: a classifier of questions, without generated texts (ViLT);
- ``images``: images alone.

Labels are the ids of the text; those of the image, of the prompt and of the padding are -100.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor

from multiflow.base.errors import MultiflowError
from multiflow.base.files import naming_damage
from multiflow.base.guards import is_shortage
from multiflow.data.examples import Sample
from multiflow.families.automatic.processors import takes
from multiflow.families.opening import quiet_transformers

Manner: TypeAlias = Literal["pairs", "chat", "suffix", "plain", "sequence", "answers", "images"]

DESCRIBE = "Describe this image in one sentence."
PROMPTS = {"suffix": "caption en", "plain": "", "sequence": ""}  # what is asked where data and user say nothing
TASK_PROMPT = "<CAPTION>"  # of Florence-2
OTHER = "\u2042", "\u2021"  # texts that nobody says: where a line differs from that with one of them, the text begins
ALONE = ("Blip2Processor", "InstructBlipProcessor", "Florence2Processor", "Kosmos2Processor", "FuyuProcessor")
"""Processors that place images themselves."""
FUYU_ANSWERS = "<0x04>"  # after it Fuyu answers; its processor puts one behind every text, that of the answer included
IGNORED = -100
RELEASED = "give the processor of the model's release with {processor=DIR_OR_ID}"
Method = TypeVar("Method", bound=Callable[..., Any])


def _saying(method: Method) -> Method:
    """Let whatever a processor or tokenizer raises be one sentence."""

    @wraps(method)
    def said(self: Reader, *args: Any) -> Any:
        how = type(self.processor).__name__
        with naming_damage(f"the {how} of the model makes no batch", RELEASED, "processor"):
            return method(self, *args)

    return said  # type: ignore[return-value]


@dataclass(frozen=True)
class Reader:
    """How a model reads; made by `reader_of`."""

    processor: Any  # of the model
    manner: Manner  # see the top of this file
    takes: frozenset[str]  # names of the arguments of the model's forward
    positions: int | None = None  # tokens of a text at most, for models of pairs and decoders
    prompt: str | None = None  # what is asked of an image where the data do not say; None = what suits the manner
    image_tokens: int | None = None  # of an image, where the model says so and its processor wants to be told
    labels: Mapping[str, int] | None = None  # class or answer -> its number, for models that classify
    dtype: torch.dtype = torch.float32  # of the model's weights, to which pixels are cast

    @property
    def tokenizer(self) -> Any:
        """The tokenizer inside the processor; None for images alone."""
        return getattr(self.processor, "tokenizer", None)

    @property
    def generates(self) -> bool:
        """Whether the model writes texts."""
        return self.manner in ("chat", "suffix", "plain", "sequence")

    @_saying
    def examples(self, examples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return a batch of examples with its labels, as the model's forward takes it.

        Raises:
            MultiflowError: the processor cannot make it; the error says what it said.
        """
        images, texts = [of.image for of in examples], [of.text for of in examples]
        prompts = [self.asked(of.prompt) for of in examples]
        match self.manner:
            case "images":
                batch = self.images(images)
                if self.labels:
                    batch["labels"] = torch.tensor([self.labels[text] for text in texts])
                return batch
            case "pairs" | "answers":
                asked = [p or t for p, t in zip(prompts, texts, strict=True)] if self.manner == "answers" else texts
                batch = self._called(images=images, text=asked, **self._fitting)
                return batch | self._chosen(texts) if self.manner == "answers" else batch
            case "sequence":
                batch = self.questions(images, [of.prompt for of in examples])
                return batch | {"labels": self._written(texts)}
            case "suffix":
                asked = [f"{self._image_token}{prompt}" for prompt in prompts]
                return self._called(images=images, text=asked, suffix=texts, padding=True)
        whole = [self._line(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        ended = {"add_eos_token": True} if type(self.processor).__name__ == "Kosmos2Processor" else {}
        batch = self._in_line(images, [line for line, _ in whole], **ended)
        if "qformer_input_ids" in batch:  # InstructBLIP's looks at the image with the question, not with the answer
            asked = self.processor.qformer_tokenizer(prompts, padding=True, return_tensors="pt")
            batch |= {f"qformer_{name}": asked[name] for name in ("input_ids", "attention_mask")}
        lengths = [self._length_behind(line, start) for line, start in whole]
        return batch | {"labels": _labels(batch, lengths)}

    @_saying
    def questions(self, images: Sequence[Image.Image], prompts: Sequence[str | None]) -> dict[str, Tensor]:
        """Return a batch of images with what is asked of each (None = the usual), for ``model.generate``.

        Texts are padded on their left where what is written follows in the same line.
        """
        asked = [self.asked(prompt) for prompt in prompts]
        if self.manner == "sequence":
            if "input_ids" not in self.takes:
                return self._called(images=list(images))
            return self._called(
                images=list(images), text=[f"{self._image_token}{text}" for text in asked], padding=True
            )
        if self.manner == "suffix":
            asked = [f"{self._image_token}{prompt}" for prompt in asked]
            return self._called(images=list(images), text=asked, padding=True, padding_side="left")
        return self._in_line(images, [self._line(prompt, None)[0] for prompt in asked], padding_side="left")

    @_saying
    def conversations(
        self, turns: Sequence[Sequence[Mapping[str, Any]]], images: Sequence[Sequence[Image.Image]]
    ) -> dict[str, Tensor]:
        """Return a batch of conversations that the model is to go on with, for ``model.generate``.

        Args:
            turns: of each conversation, as chat templates want them: ``{"role", "content": [{"type": "image"}, {"type":
                "text", "text"}]}``. A model without a template gets the texts of all turns, in lines.
            images: of each conversation, in the order of their places in the turns.
        """
        if self.manner == "chat":
            lines = [self._render(of, add_generation_prompt=True) for of in turns]
            return self._in_line(images, lines, padding_side="left")
        if any(len(of) != 1 for of in images):
            raise MultiflowError("a model without a chat template takes one image at a time")
        texts = ["\n".join(part["text"] for turn in of for part in turn["content"] if "text" in part) for of in turns]
        return self.questions([of[0] for of in images], texts)

    @_saying
    def written(self, batch: Mapping[str, Tensor], generated: Tensor) -> list[str]:
        """Return the texts that ``model.generate`` wrote for a batch of `questions`, without what was asked."""
        ids = batch.get("input_ids")
        if ids is not None and generated.shape[1] >= ids.shape[1]:
            begins = generated[:, : ids.shape[1]] == ids.to(generated.device)
            generated = generated[:, ids.shape[1] :] if begins.all() else generated
        return [text.strip() for text in self.tokenizer.batch_decode(generated, skip_special_tokens=True)]

    @_saying
    def images(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return a batch of images alone."""
        return self._called(self.processor.image_processor, images=list(images))

    @_saying
    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return a batch of texts alone, for models of pairs."""
        return self._called(text=list(texts), **self._fitting)

    def asked(self, prompt: str | None) -> str:
        """Return what is asked of an image: what the data say, what the user says, or what suits the manner."""
        if prompt:
            return prompt
        if self.prompt is not None:
            return self.prompt
        if self.manner == "sequence" and hasattr(self.processor, "task_prompts_without_inputs"):
            return TASK_PROMPT
        return PROMPTS.get(self.manner, DESCRIBE if self.manner == "chat" else "")

    @cached_property
    def _own(self) -> dict[str, Any]:
        """Sizes that the files of the image processor say, where its class has defaults that would go before them."""
        images = getattr(self.processor, "image_processor", None)
        usual = getattr(type(self.processor), "images_kwargs", None)
        usual = usual if isinstance(usual, dict) else {}
        own = {name: getattr(images, name, None) for name, value in usual.items() if type(value) is int}
        return {"images_kwargs": own} if own and None not in own.values() else {}

    @cached_property
    def _fitting(self) -> dict[str, Any]:
        """How texts of pairs are cut and filled up: to the full length where the model is trained without a mask."""
        own = getattr(type(self.processor), "text_kwargs", None)
        if isinstance(own, dict) and own.get("padding"):
            most = min(filter(None, (own.get("max_length"), self.positions)), default=None)
            return {"max_length": most} if most else {}
        masked = "attention_mask" in self.tokenizer.model_input_names
        return {"padding": True if masked else "max_length", "truncation": True, "max_length": self.positions}

    def _line(self, prompt: str, text: str | None) -> tuple[str, int]:
        """Return image, prompt and text in one line, and where in it the text begins."""
        if self.manner == "plain":
            before = self._before(prompt, text)
            end = "" if text is None or self._ends else self.tokenizer.eos_token or ""
            return f"{before}{text or ''}{end}", len(before)
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
        if text is None:
            return self._render(turns, add_generation_prompt=True), 0
        line, other = (
            self._render([*turns, {"role": "assistant", "content": [{"type": "text", "text": said}]}])
            for said in (text, OTHER[text.strip()[:1] == OTHER[0]])
        )
        return line, _same(line, other)

    def _before(self, prompt: str, text: str | None) -> str:
        """Return what stands before a text in one line with the image and the prompt."""
        match type(self.processor).__name__:
            case "FuyuProcessor":
                return prompt if text is None else f"{prompt}{FUYU_ANSWERS}"
            case "GotOcr2Processor":  # a chat model without a template
                how = self.processor
                start, stop = how.message_start_token, how.message_end_token
                image = f"{how.img_start_token}{how.image_token}{how.img_end_token}"
                return f"{start}{how.system_query}{stop}{start}user\n{image}\n{prompt}{stop}{start}assistant\n"
        return f"{self._image_token}{prompt}{' ' if prompt and text else ''}"

    def _render(self, turns: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Write turns as the chat template says; one for texts alone gets the image's token in the text."""
        template = _template(self.processor)
        render = self.tokenizer.apply_chat_template
        line = ""
        with suppress(Exception):  # a template may raise anything of turns that it does not know
            line = render(turns, chat_template=template, tokenize=False, **options)
        if line and "{'type'" not in line and (not self._image_token or self._image_token in line):
            return line
        plain = [
            {"role": turn["role"], "content": "\n".join(_plain(part, self._image_token) for part in turn["content"])}
            for turn in turns
        ]
        try:
            return render(plain, chat_template=template, tokenize=False, **options)
        except Exception as error:  # likewise
            raise MultiflowError(
                f"the chat template of the processor cannot write an image with a prompt: {error}; give the "
                "processor of the model's release with {processor=DIR_OR_ID}",
                field="processor",
            ) from error

    @cached_property
    def _ends(self) -> bool:
        """Whether the tokenizer ends every text by itself."""
        return self.tokenizer("a")["input_ids"][-1] == self.tokenizer.eos_token_id

    @property
    def _image_token(self) -> str:
        """What stands for an image in a text; empty where the processor puts it there itself."""
        token = getattr(self.processor, "image_token", None)
        token = getattr(token, "content", token)
        alone = type(self.processor).__name__ in ALONE
        return "" if token is None or alone else str(token)

    def _in_line(
        self, images: Sequence[Image.Image | Sequence[Image.Image]], lines: list[str], **options: Any
    ) -> dict[str, Tensor]:
        """Process images with lines of text; the first token of all texts is not put twice."""
        begin = self.tokenizer.bos_token
        if self.manner == "chat" and begin and lines[0].startswith(begin):
            options["add_special_tokens"] = False
        nested: list[Any] = list(images)
        if self._image_token and type(self.processor).__name__ != "GotOcr2Processor":  # that takes pages in lists
            nested = [[image] if isinstance(image, Image.Image) else list(image) for image in images]
        if not any(nested):  # texts alone
            return self._called(text=lines, padding=True, **options)
        batch = self._called(images=nested, text=lines, padding=True, **options)
        if FUYU_ANSWERS in lines[0]:  # the one behind the answers, which are all at the right end
            last = batch["input_ids"].shape[1] - 1
            batch = {name: of[:, :last] if of.shape[1] == last + 1 else of for name, of in batch.items()}
        return batch

    def _length_behind(self, line: str, start: int) -> int:
        """Return how many tokens at the end of a line belong to the text, which begins at a character of it."""
        whole, before = (self.tokenizer(part)["input_ids"] for part in (line, line[:start]))
        return len(whole) - _same(whole, before)

    def _chosen(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return which of its answers a classifier of questions is to give; nothing where it knows none of them."""
        known = self.labels or {}
        numbers = [known.get(text.strip().lower()) for text in texts]
        if all(number is None for number in numbers):
            return {}
        labels = torch.zeros(len(texts), len(known), dtype=self.dtype)
        for row, number in enumerate(numbers):
            if number is not None:
                labels[row, number] = 1
        return {"labels": labels}

    def _written(self, texts: Sequence[str]) -> Tensor:
        """Return texts, each with its end, as the labels of a decoder."""
        most = {"truncation": True, "max_length": self.positions} if self.positions else {}
        end = "" if self._ends else self.tokenizer.eos_token or ""
        found = self.tokenizer([f"{text}{end}" for text in texts], padding=True, return_tensors="pt", **most)
        return found["input_ids"].masked_fill(found["attention_mask"] == 0, IGNORED)

    def _called(self, how: Any = None, **given: Any) -> dict[str, Tensor]:
        """Call the processor, or a part of it; keep what the model takes, in its dtype."""
        given = given | (self._own if how is None and "images" in given else {})
        if self.image_tokens and how is None and "images" in given:
            given = given | {"num_image_tokens": self.image_tokens}
        how = how or self.processor
        given = {name: value for name, value in given.items() if value is not None}
        count = len(given["text"] if "text" in given else given["images"])
        try:
            with quiet_transformers(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of how transformers itself is written
                made = how(return_tensors="pt", **given)
        except Exception as error:  # of what does not suit them processors raise anything
            if is_shortage(error):
                raise
            raise MultiflowError(
                f"the {type(how).__name__} of the model makes no batch of {count} examples: "
                f"{' '.join(str(error).split())[:300]}; give the processor of the model's release with "
                "{processor=DIR_OR_ID}",
                field="processor",
            ) from error
        if "image_patches" in made and "pixel_values" in self.takes:  # what Fuyu's processor calls them still
            made["pixel_values"] = made.pop("image_patches")
        return {
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in made.items()
            if name in self.takes and isinstance(value, Tensor)
        }


def _same(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how far two sequences are the same from their beginning."""
    ends = min(len(one), len(other))
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), ends)


def _plain(part: Mapping[str, str], image_token: str) -> str:
    return image_token if part["type"] == "image" else part["text"]


def _labels(batch: Mapping[str, Tensor], lengths: Sequence[int]) -> Tensor:
    """Return labels that are the last real tokens of each row, as many as belong to its text."""
    ids = batch["input_ids"]
    real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(ids, dtype=torch.bool)
    behind = real.flip(1).cumsum(1).flip(1)  # how many real tokens follow, each counted with itself
    return ids.masked_fill(~(real & (behind <= torch.tensor(lengths)[:, None])), IGNORED)


def reader_of(model: Any, processor: Any, *, prompt: str | None = None) -> Reader:
    """Return how a model reads through a processor.

    Args:
        model: of transformers.
        processor: its own, from `multiflow.families.automatic.processors.load_processor`.
        prompt: what is asked of an image where the data do not say.
    """
    with naming_damage(f"the {type(processor).__name__} of the model cannot be used", RELEASED, "processor"):
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is not None and tokenizer.pad_token is None:  # as of Llama and GPT-2
            processor = deepcopy(processor)
            processor.tokenizer.pad_token = tokenizer.eos_token
        manner = manner_of(model, processor)
        answers = (model.config.id2label or {}) if manner == "answers" else {}
        return Reader(
            processor,
            manner,
            frozenset(inspect.signature(model.forward).parameters),
            _positions(model.config, tokenizer),
            prompt,
            _image_tokens(model.config, processor),
            labels={str(answer).strip().lower(): int(number) for number, answer in answers.items()} or None,
            dtype=model.dtype,
        )


def manner_of(model: Any, processor: Any) -> Manner:
    """Return in which manner a model reads, see the top of this file."""
    config = model.config
    if not takes(model, "input_ids", "decoder_input_ids"):
        return "images"
    if not takes(model, "labels"):
        return "pairs"
    if not model.can_generate():
        return "answers"
    if "suffix" in inspect.signature(type(processor).__call__).parameters:
        return "suffix"
    parts = (config, getattr(config, "text_config", None))
    if any(getattr(part, "is_encoder_decoder", False) for part in parts) or not takes(model, "input_ids"):
        return "sequence"
    return "chat" if _template(processor) else "plain"


def _template(processor: Any) -> str | None:
    """Return the chat template of a processor or its tokenizer; of several the one for all."""
    own = getattr(processor, "chat_template", None)
    found = own or getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    return found.get("default") if isinstance(found, dict) else found


def _positions(config: Any, tokenizer: Any) -> int | None:
    """Return how many tokens a text may have, by the positions of the text model and by its tokenizer."""
    text = getattr(config, "text_config", None) or getattr(config, "decoder", None) or config
    most = (getattr(text, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
    return min((int(value) for value in most if value and value < 1e6), default=None)


def _image_tokens(config: Any, processor: Any) -> int | None:
    """Return how many tokens an image has, for processors that take the number of the released models otherwise."""
    match type(processor).__name__:
        case "Kosmos2Processor":
            return int(config.latent_query_num)
        case "GotOcr2Processor":
            vision = config.vision_config
            size, patch = (of if isinstance(of, int) else of[0] for of in (vision.image_size, vision.patch_size))
            return int(size // patch // 4) ** 2  # behind its tower two convolutions of stride 2
    return None
