"""A model's own processor, from its folder or the Hub: with what is missing said in one sentence.

`load_processor` takes what ``AutoProcessor`` gives. Where that cannot be loaded for lack of torchvision, which
transformers wants for videos alone, the processor is put together without its part for videos; where a model has no
processor class, its image processor and its tokenizer stand in for it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    ProcessorMixin,
)
from transformers.image_processing_utils import ImageProcessingMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import processor_class_from_name as class_from_name

from multiflow.base.errors import MultiflowError
from multiflow.base.files import check_files, is_damage, naming_damage, read_json, shortened
from multiflow.base.hub import reach_hub
from multiflow.data.images import MOST_PIXELS
from multiflow.families.family import type_of
from multiflow.families.opening import PROCESSOR_FILES, TOKENIZER_FILES, model_files, quiet_transformers
from multiflow.families.own_code import refuse_processing_code, runs_own_code

OF_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
NAMING_CODE = (*PROCESSOR_FILES, "tokenizer_config.json", "config.json")
OF_IMAGES = ("preprocessor_config.json", "processor_config.json")
TEXTS = ("input_ids", "decoder_input_ids")
WANTED = re.compile(r"(?:requires the|Package) [`']?([A-Za-z0-9_-]+)[`']?", re.IGNORECASE)


LACKING = re.compile(r"requires `\w+` to be installed")


class NoVideos:
    """Stands where a processor keeps its part for videos, which needs torchvision; it is never called."""

    model_input_names: Sequence[str] = ()
    num_frames = fps = None


@dataclass(frozen=True)
class Parts:
    """An image processor and a tokenizer as one processor, for models that have no class of their own."""

    image_processor: Any = None
    tokenizer: Any = None  # None for images alone
    feature_extractor: Any = None  # of sounds, instead of the image processor

    def __call__(self, images: Any = None, text: Any = None, return_tensors: str = "pt", **options: Any) -> Any:
        """Return the pixels of images, the tokens of texts, or both."""
        found: dict[str, Any] = {}
        if images is not None and self.image_processor is not None:
            found |= self.image_processor(images, return_tensors=return_tensors)
        if text is not None and self.tokenizer is not None:
            found |= self.tokenizer(text, return_tensors=return_tensors, **options)
        return BatchFeature(found)


def load_processor(given: Any, place: str, model: Any, *, trust: bool = False) -> Any:
    """Return the processor of a model.

    Args:
        given: a processor, or the folder or Hugging Face id of one; None = that of the model.
        place: where the model was loaded from.
        model: the model.
        trust: whether Python code that comes with the processor may run; that of a model whose own code runs may.

    Raises:
        MultiflowError: files or packages are missing, which the error names, or there is code that may not run.
    """
    if given is not None and not isinstance(given, str | Path):
        return _checked(given, model)
    source = str(place if given is None else given)
    if not source or (given is None and Path(source).is_file()):
        raise MultiflowError(
            f"a {type(model).__name__} that was not loaded from a folder or id brings no processor; name one with "
            "{processor=DIR_OR_ID}",
            field="processor",
        )
    check_files(source, (*TOKENIZER_FILES, *OF_TOKENIZER, *PROCESSOR_FILES, "config.json"), "processor")
    with quiet_transformers():
        try:
            options = _options(source, trusted=trust or (source == str(place) and runs_own_code(model)))
        except OSError as error:
            raise MultiflowError(
                f"the processor '{source}' is no folder here, nor on Hugging Face: {shortened(error)}; name another "
                "with {processor=DIR_OR_ID}",
                field="processor",
            ) from error
        if not options["trust_remote_code"]:
            refuse_processing_code(source, model_files(source, NAMING_CODE))
        try:
            with _refusing(source, model):
                found = AutoProcessor.from_pretrained(source, **options)
        except ImportError as error:
            found = _without_videos(source, model, options, error)
    found = found if isinstance(found, ProcessorMixin | Parts) else _of_parts(source, model, options)
    with naming_damage(f"the image processor in '{source}' makes no sense", "copy its files again"):
        _check_sizes(getattr(found, "image_processor", None), source)
    return found


@contextmanager
def _refusing(source: str, model: Any) -> Iterator[None]:
    """Turn what transformers raises of damaged or missing files, which is anything, into one sentence."""
    try:
        yield
    except (ImportError, MultiflowError):
        raise
    except BaseException as error:
        if not is_damage(error):
            raise
        if LACKING.search(str(error)):  # said as a wrong value by its classes for videos
            raise ImportError(str(error)) from error
        raise _refusal(source, model, error) from error


def _check_sizes(image_processor: Any, source: str) -> None:
    """Refuse an image processor that would make pictures of more pixels than are ever read."""
    for name in ("size", "crop_size", "pad_size"):
        said = getattr(image_processor, name, None)
        said = {"shortest_edge": said} if isinstance(said, int) else dict(said or {})
        edges = {key: value for key, value in said.items() if isinstance(value, int | float)}
        counts = hasattr(image_processor, "merge_size")  # then the edges are numbers of pixels, by their name only
        sides = [1 if counts else value for key, value in edges.items() if key.endswith("_edge")]
        pixels = [*edges.values(), *(side * side for side in sides), edges.get("height", 1) * edges.get("width", 1)]
        if not all(0 < count <= MOST_PIXELS for count in pixels):
            raise MultiflowError(
                f"the image processor in '{source}' says {name}={said}; expected pictures of at most {MOST_PIXELS} "
                "pixels; copy its files again"
            )


def _checked(given: Any, model: Any) -> Any:
    """Return a processor that was given, if it reads images, and texts where the model does."""
    if isinstance(given, ImageProcessingMixin) and not takes(model, *TEXTS):
        return Parts(given)
    first = "feature_extractor" if listens(model) else "image_processor"
    needs = (first, "tokenizer") if takes(model, *TEXTS) or listens(model) else (first,)
    lacking = [name.replace("_", " ") for name in needs if getattr(given, name, None) is None]
    if lacking:
        raise MultiflowError(
            f"the processor of a {type(model).__name__} is a {type(given).__name__}, which has no {lacking[0]}; give "
            "what transformers.AutoProcessor.from_pretrained loads, or a folder or id with {processor=DIR_OR_ID}",
            field="processor",
        )
    return given


def _options(source: str, *, trusted: bool) -> dict[str, Any]:
    """Return how to load from a place: from the local cache if it is there; its code runs only if the model's does."""
    options: dict[str, Any] = {"trust_remote_code": trusted}
    if Path(source).is_dir():
        return options
    try:
        AutoConfig.from_pretrained(source, local_files_only=True, **options)
    except (OSError, ValueError):
        reach_hub(source)
        return options
    return {**options, "local_files_only": True}


def _without_videos(source: str, model: Any, options: Mapping[str, Any], why: ImportError) -> Any:
    """Put a processor together that cannot take videos; one that lacks another package is an error that names it."""
    kind = _class_of(source, model, options)
    absent = getattr(kind, "is_dummy", kind is None)  # a class that stands in for one whose packages are missing
    if absent or not any("video" in name for name in kind.get_attributes()):
        raise _refusal(source, model, why)
    loaders: dict[str, Any] = {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
    try:
        parts = {
            name: NoVideos() if "video" in name else loaders[name].from_pretrained(source, **options)
            for name in kind.get_attributes()
        }
        settings, _ = kind.get_processor_dict(source, **options)
        known = inspect.signature(kind.__init__).parameters
        more = {name: value for name, value in settings.items() if name in known and name not in parts}
        more["chat_template"] = settings.get("chat_template") or getattr(parts["tokenizer"], "chat_template", None)
        made = kind.__new__(kind)
        made.check_argument_for_proper_class = lambda name, part: type(part)  # it would refuse what takes no videos
        made.__init__(**parts, **more)
        del made.check_argument_for_proper_class
    except BaseException as error:  # likewise; the first reason is the one to tell, unless another package is missing
        if not is_damage(error):
            raise
        raise _refusal(source, model, error if isinstance(error, ImportError) else why) from error
    return made


def _class_of(source: str, model: Any, options: Mapping[str, Any]) -> Any:
    """Return the class of a processor, by what its files say, or else by the type of the model."""
    for file in (*OF_IMAGES[::-1], "tokenizer_config.json"):
        if name := _says(Path(source), file).get("processor_class"):
            return class_from_name(name)
    name = PROCESSOR_MAPPING_NAMES.get(type_of(model))
    return class_from_name(name) if name else None


def _says(folder: Path, file: str) -> Mapping[str, Any]:
    """Return what a JSON file of a folder says; nothing where it is not there or damaged."""
    try:
        said = read_json(folder / file)
    except MultiflowError:
        return {}
    return said if isinstance(said, dict) else {}


def _of_parts(source: str, model: Any, options: Mapping[str, Any]) -> Parts:
    """Take the image processor and the tokenizer for themselves."""
    takes_text = takes(model, *TEXTS)
    try:
        with _refusing(source, model):
            if listens(model):
                ears = AutoFeatureExtractor.from_pretrained(source, **options)
                return Parts(None, AutoTokenizer.from_pretrained(source, **options), ears)
            image_processor = AutoImageProcessor.from_pretrained(source, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, **options) if takes_text else None
    except ImportError as error:
        raise _refusal(source, model, error) from error
    return Parts(image_processor, tokenizer)


def _refusal(source: str, model: Any, why: BaseException) -> MultiflowError:
    """Say what is missing: a package, or files of the folder."""
    if isinstance(why, ImportError):
        package = WANTED.search(str(why))
        name = package[1].lower() if package else None
        return MultiflowError(
            f"the processor of '{source}' needs a package that is not installed: {shortened(why)}"
            + (
                f"; install it with 'pip install {name}'"
                if name and name not in shortened(why).split("pip install")[-1]
                else ""
            )
        )
    held = {path.name for path in Path(source).iterdir()} if Path(source).is_dir() else set()
    first = "feature extractor" if listens(model) else "image processor"
    if first.replace(" ", "_") not in _says(Path(source), OF_IMAGES[1]):
        held -= {OF_IMAGES[1]}
    needs: list[tuple[str, tuple[str, ...]]] = [(f"its {first}", OF_IMAGES)]
    if takes(model, *TEXTS) or listens(model):
        needs.append(("its tokenizer", OF_TOKENIZER))
    lacking = [f"{what} ({' or '.join(files[:2])})" for what, files in needs if held and not held & {*files}]
    reason = f"the folder lacks the files of {' and of '.join(lacking)}" if lacking else shortened(why)
    return MultiflowError(
        f"the processor of a {type(model).__name__} cannot be loaded from '{source}': {reason}; copy its files from "
        "the original model, or name a folder or id that has them with {processor=DIR_OR_ID}",
        field="processor",
    )


def listens(model: Any) -> bool:
    """Tell whether a model takes sounds, and no images."""
    return takes(model, "input_features", "input_values") and not takes(model, "pixel_values")


def takes(model: Any, *names: str) -> bool:
    """Tell whether the forward of a model has an argument of one of these names."""
    return any(name in inspect.signature(model.forward).parameters for name in names)
