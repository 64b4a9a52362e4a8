"""From what the user names to what the engine takes: models, devices, tokenizers and calibration batches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from multiflow.base.errors import MultiflowError, did_you_mean, unknown
from multiflow.data.images import read_statistics
from multiflow.data.text import DEFAULT_TOKENIZER, load_tokenizer, token_count
from multiflow.families import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
OWN_TOKENIZER = ("tokenizer.json", "vocab.txt")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

IN_PYTHON = {
    r"\b(family|config)=": r"--\1",
    r"\bset (?=\w+=)": "--set ",
    r"\buntil_stable\b": "--until-stable",
    r" or leave the layer out with Adapter\(exclude=\.\.\.\)": "",
}
"""What errors say to users of Python -> what they say on the command line."""


def bundled_models() -> dict[str, Path]:
    """Return the models inside the package: name -> folder."""
    assets = Path(str(files("multiflow") / "assets"))
    return {path.parent.name: path.parent for path in sorted(assets.glob("*/config.json"))}


def find_model(source: str) -> str:
    """Return the path or Hugging Face id that MODEL means; a name close to a bundled one is an error that says so."""
    bundled = bundled_models()
    if Path(source).expanduser().exists():
        return str(Path(source).expanduser())
    if source in bundled:
        return str(bundled[source])
    if did_you_mean(source, bundled) and "/" not in source:
        raise unknown("model", source, [*bundled, "a file, a folder or a Hugging Face id"])
    return source


def open_model(
    source: str, family: str | None, config: str | None, device: str = "cpu", dtype: str = "auto"
) -> nn.Module:
    """Load MODEL, which `find_model` has resolved, in a dtype on a device, without a word from transformers."""
    place, kind = find_device(device), find_dtype(dtype)
    with naming_options(), quiet_transformers():
        model = load_model(source, family=family, config=config)
    return model.to(device=place, dtype=kind)


@contextmanager
def naming_options() -> Iterator[None]:
    """Let errors name what is an argument in Python as the option that it is here."""
    try:
        yield
    except MultiflowError as error:
        said = str(error)
        for python, here in IN_PYTHON.items():
            said = re.sub(python, here, said)
        if said == str(error):
            raise
        raise type(error)(said) from error


def find_device(name: str) -> torch.device:
    """Return the device that a name means; one that is not there is an error."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ["auto", "cpu", "cuda", "cuda:N", "mps"]) from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= there.get(device.type, 0):
        usable = ", ".join(kind for kind, count in there.items() if count)
        raise MultiflowError(f"device '{name}' is not on this machine, which has: {usable}; choose one of them")
    return device


def find_dtype(name: str) -> torch.dtype | None:
    """Return the dtype that a name means; None for ``auto``, which leaves the model's."""
    if name != "auto" and name not in DTYPES:
        raise unknown("dtype", name, ["auto", *DTYPES])
    return DTYPES.get(name)


def find_tokenizer(given: str | None, source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer that was given, the one in the model's own folder, or ``bert-base-uncased``."""
    own = given is None and model_files(source, OWN_TOKENIZER)
    with quiet_transformers():
        return load_tokenizer(given or (source if own else DEFAULT_TOKENIZER))


def fitting_tokenizer(given: str | None, source: str, vocabulary: int) -> PreTrainedTokenizerBase:
    """Load a tokenizer as `find_tokenizer` does; one with more tokens than the model embeds is another model's."""
    tokenizer = find_tokenizer(given, source)
    if token_count(tokenizer) > vocabulary:
        raise MultiflowError(
            f"the tokenizer has {token_count(tokenizer)} tokens, the model embeds {vocabulary}; "
            "give the tokenizer that belongs to the model with --tokenizer DIR_OR_ID"
        )
    return tokenizer


def model_files(source: str, names: tuple[str, ...]) -> list[Path]:
    """Return those of the named files that come with a model, from its folder or the Hugging Face cache."""
    if Path(source).is_dir():
        return [Path(source) / name for name in names if (Path(source) / name).is_file()]
    if Path(source).exists():
        return []
    from huggingface_hub import hf_hub_download

    found = []
    for name in names:
        try:
            found.append(Path(hf_hub_download(source, name)))
        except (OSError, ValueError):  # the model comes without this file, or the hub cannot be reached
            continue
    return found


def pixel_statistics(source: str) -> dict[str, Any]:
    """Return ``mean`` and ``std`` of the pixels that a model expects, where its folder says so."""
    for path in model_files(source, PROCESSOR_FILES[:1]):
        return read_statistics(path)
    return {}


@dataclass(frozen=True)
class Preprocessing:
    """How a model's inputs are made, and the files that say so.

    Args:
        tokenizer: the model's; None for models of images alone.
        files: to copy into the folder of the fine-tuned model, such as a processor's.
        pixels: ``mean`` and ``std`` of the pixels, where they are not CLIP's.
    """

    tokenizer: Any = None
    files: Sequence[Path] = ()
    pixels: Mapping[str, Any] = field(default_factory=dict)


def load_preprocessing(given: str | None, source: str, model: Any) -> Preprocessing:
    """Load how the inputs of a model are made; a model of images alone has no tokenizer.

    Args:
        given: folder or Hugging Face id of the tokenizer, where the model comes without its own.
        source: where the model was loaded from.
        model: the model.
    """
    text = getattr(model.config, "text", None)
    tokenizer = None if text is None else fitting_tokenizer(given, source, text["vocab_size"])
    return Preprocessing(tokenizer, model_files(source, PROCESSOR_FILES), pixel_statistics(source))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the progress bars and notes of transformers and of its hub off the screen inside the block."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    levels, bars = (logging.get_verbosity(), hub.get_verbosity()), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub.set_verbosity(levels[1])
        if bars:
            logging.enable_progress_bar()
