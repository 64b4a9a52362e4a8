"""One door for every model: a Hugging Face id or folder, or a file of an original release."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multiflow.base.errors import MultiflowError
from multiflow.base.hub import reach_hub
from multiflow.families.files import read_config, read_tensors
from multiflow.families.original import FAMILIES, fill, find

HOUSE = {
    "xvlm": "multiflow.families.xvlm",
    "xvlm-retrieval": "multiflow.families.xvlm",
    "xvlm-captioning": "multiflow.families.xvlm",
    "xvlm-vqa": "multiflow.families.xvlm",
    "blip-pretraining": "multiflow.families.blip",
    "blip-retrieval": "multiflow.families.blip",
    "blip-captioning": "multiflow.families.blip",
    "blip-vqa": "multiflow.families.blip",
}
"""``config.model_type`` -> module of our own model classes; every other one is looked for in transformers."""

RELEASES = {**{name: name.split("-")[0] for name in HOUSE}, "blip": "blip", "vit": "dino", "dinov2": "dino"}
"""``config.model_type`` -> family of original releases, as in ``load_model(family=...)``."""

FILE_SUFFIXES = (".pth", ".th", ".pt", ".bin", ".ckpt", ".safetensors")


def load_model(
    source: str | Path, family: str | None = None, config: Mapping[str, Any] | str | Path | None = None
) -> nn.Module:
    """Load a model, in evaluation mode.

    Args:
        source: a Hugging Face id or folder, the name of a bundled model (``xvlm-shapes``), or a checkpoint file of an
            original release.
        family: of a file, whose release it is: ``xvlm``, ``blip`` or ``dino``. Other sources say theirs themselves;
            given all the same, it must agree.
        config: of a file, its sizes: a mapping, a JSON or YAML file (plain names, or the release's own config files),
            or the name of a preset; None means ``base``.

    Returns:
        The model; of a file in float32 on the CPU, otherwise in the dtype that its folder declares.

    Raises:
        MultiflowError: the source cannot be found or read, is of another family, or its tensors do not fit the sizes.

    >>> load_model("checkpoint.pth", family="xvlm", config={"image_size": 384})  # doctest: +SKIP
    """
    path = Path(source)
    if path.is_file():
        return _load_file(path, family, config)
    if path.suffix.lower() in FILE_SUFFIXES or (path.is_absolute() and not path.exists()):
        raise MultiflowError(f"there is no file or folder '{source}'; check the path")
    if config is not None:
        raise MultiflowError(
            f"'{source}' is not a file, and config= is for files of an original release; a Hugging Face id or folder "
            "has a config of its own"
        )
    bundled = files("multiflow") / "assets" / str(source)
    return _load_pretrained(str(bundled) if not path.exists() and bundled.is_dir() else str(source), family)


def _load_file(path: Path, family: str | None, config: Mapping[str, Any] | str | Path | None) -> nn.Module:
    if family is None:
        raise MultiflowError(
            f"'{path}' is a file and does not say which model it holds; pass family= one of {', '.join(FAMILIES)}"
        )
    original = find("family", family, FAMILIES)
    if original.build is None:
        raise MultiflowError(f"files of family '{family}' cannot be read; give a Hugging Face id or folder")
    sizes = read_config(config, original.presets or {})
    state = read_tensors(path)
    with torch.device("meta"):
        model = original.build(sizes, state)
    fill(model, state, original, str(path))
    return model.eval()


def _read_config(source: str) -> dict[str, Any]:
    """Read the config of a folder, of the local Hugging Face cache or, failing both, of the Hub."""
    from transformers import PretrainedConfig

    if not Path(source).is_dir():
        try:
            return PretrainedConfig.get_config_dict(source, local_files_only=True)[0]
        except OSError:
            reach_hub(source)
    return PretrainedConfig.get_config_dict(source)[0]


def _check_family(source: str, family: str, model_type: str | None) -> None:
    """Raise an error where a folder or id is not of the family that was given."""
    find("family", family, FAMILIES)
    own = RELEASES.get(model_type or "")
    if own != family:
        what = f"of family '{own}'" if own else f"of none of the families {', '.join(FAMILIES)}"
        raise MultiflowError(
            f"family '{family}' was given, but '{source}' is {what}: its config says model_type '{model_type}'; leave "
            "family= out, or give a file of the original release"
        )


def _load_pretrained(source: str, family: str | None) -> nn.Module:
    import transformers

    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise MultiflowError(
            f"folder '{source}' holds no config.json; give a folder written by save_pretrained, or a checkpoint file "
            "and its family"
        )
    try:
        config = _read_config(source)
        if family is not None:
            _check_family(source, family, config.get("model_type"))
        names = import_module(HOUSE.get(config.get("model_type", ""), "transformers"))
        architecture = (config.get("architectures") or ["AutoModel"])[0]
        model_class = getattr(names, architecture, None) or transformers.AutoModel
        model, report = model_class.from_pretrained(source, output_loading_info=True)
    except MultiflowError:
        raise
    except Exception as error:  # what can go wrong here is transformers' and the hub's, in many classes
        what = (
            "cannot load folder '{}'"
            if Path(source).is_dir()
            else "'{}' is no file or folder here, nor on Hugging Face"
        )
        raise MultiflowError(f"{what.format(source)}: {' '.join(str(error).split())[:300]}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        warnings.warn(
            f"'{source}' lacks {len(missing)} weights of {type(model).__name__}, which are now random: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}",
            stacklevel=3,
        )
    return model.eval()
