"""From what the user names to what the engine takes: models, devices, dtypes, tokenizers.

`load_model` is the one door for every model: a Hugging Face id or folder, or a file of an original release.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.resources import files
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from multiflow.base.artifacts import check_foreign
from multiflow.base.errors import MultiflowError, counted, did_you_mean, unknown
from multiflow.base.files import beside, check_files, exists, inner_files, shortened
from multiflow.base.guards import check_depth, is_shortage
from multiflow.base.hub import reach_hub
from multiflow.base.offload import without_mapping
from multiflow.base.packed import FILE as PACKED_FILE
from multiflow.base.packed import read_packed
from multiflow.base.runs import fresh_folder
from multiflow.base.structure import STRUCTURE_FILE, Structure
from multiflow.data.images import read_statistics
from multiflow.data.text import DEFAULT_TOKENIZER, load_tokenizer, looks_like_path, token_count
from multiflow.families.family import FAMILIES, adapter_for, family_of, model_types, original_names, reads_by_processor
from multiflow.families.original import Original, fill, read_config, read_tensors
from multiflow.families.own_code import auto_class, code_files, own_class
from multiflow.masks import Masks, is_original
from multiflow.masks.sharing import find_mask_file
from multiflow.pruning.result import changed_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
OWN_TOKENIZER = ("tokenizer.json", "vocab.txt")
READING = {"tokenizer_config.json", "preprocessor_config.json"}  # whoever asks for both asks for whole processors
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")

FILE_SUFFIXES = (".pth", ".th", ".pt", ".bin", ".ckpt", ".safetensors")


def load_model(
    source: str | Path,
    family: str | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    masks: Masks | str | Path | None = None,
    sparsity: float | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load a model, in evaluation mode.

    Args:
        source: a Hugging Face id or folder, the name of a bundled model (``xvlm-shapes``), or a checkpoint file of an
            original release.
        family: of a file, whose release it is: ``xvlm``, ``blip`` or ``dino``. Other sources say theirs themselves;
            given all the same, it must agree.
        config: of a file, its sizes: a mapping, a JSON or YAML file (plain names, or the release's own config files),
            or the name of a preset; None means ``base``.
        masks: to apply at once, with the changed weights that may lie beside them: `Masks`, a mask file, the folder of
            a run, or a repository of the Hugging Face Hub, ``user/masks``.
        sparsity: which of several masks, as it was asked for.
        trust_remote_code: whether Python code that a folder brings for a model of its own may run.

    Returns:
        The model; of a file in float32 on the CPU, otherwise in the dtype that its folder declares.

    Raises:
        MultiflowError: the source cannot be found or read, is of another family, or its tensors do not fit the sizes.

    >>> load_model("checkpoint.pth", family="xvlm", config={"image_size": 384})  # doctest: +SKIP
    """
    if masks is not None:
        apply_ = _open_masks(masks, sparsity)  # what is wrong with them is said before the model is loaded
        model = load_model(source, family, config, trust_remote_code=trust_remote_code)
        apply_(model)
        return model
    path = Path(source)
    if path.is_file():
        return _load_file(path, family, config)
    if path.suffix.lower() in FILE_SUFFIXES or (path.is_absolute() and not path.exists()):
        raise MultiflowError(f"there is no file or folder '{source}'; check the path")
    if config is not None:
        raise MultiflowError(
            f"'{source}' is not a file, and {{config=}} is for files of an original release; a Hugging Face id or "
            "folder has a config of its own",
            field="config",
        )
    bundled = files("multiflow") / "assets" / str(source)
    place = str(bundled) if not path.exists() and bundled.is_dir() else str(source)
    return _load_pretrained(place, family, trust=trust_remote_code)


def open_streamed(
    source: str | Path, folder: str | Path, family: str | None = None, *, trust_remote_code: bool = False
) -> nn.Module:
    """Open a model without its weights, for `prune_streamed`: they stay in their files, and come when they are needed.

    Args:
        source: a Hugging Face id or folder, in safetensors.
        folder: new or empty; weights that are stored in another form than the model has them in (stacked experts of
            some) are put there anew. It can go when the model is no longer used.
        family: if given, the source must be of this one.
        trust_remote_code: whether Python code that a folder brings for a model of its own may run.

    Returns:
        The model on the meta device, in evaluation mode, with hooks of accelerate that bring its weights.

    Raises:
        MultiflowError: as of `load_model`; or weights that the source lacks.

    >>> model = open_streamed("llava-1.5-13b", "offload")  # doctest: +SKIP
    """
    if (path := Path(source)).is_file() or path.suffix.lower() in FILE_SUFFIXES:
        raise MultiflowError(
            f"'{source}' is one file, and a model that is streamed is a Hugging Face folder; convert it with "
            "load_model(...).save_pretrained(folder)"
        )
    if (path / PACKED_FILE).is_file():
        raise MultiflowError(f"'{source}' is a packed folder, which cannot be streamed; unpack it with mf.unpack first")
    bundled = bundled_models()
    place = str(bundled[str(source)]) if not path.exists() and str(source) in bundled else str(source)
    return _load_pretrained(place, family, offload=fresh_folder(folder, ""), trust=trust_remote_code)


def _open_masks(source: Masks | str | Path, sparsity: float | None) -> Callable[[nn.Module], object]:
    """Read masks; return what applies them to the model."""
    if isinstance(source, Masks):
        return source.apply_
    file = find_mask_file(source, sparsity)
    masks = Masks.load(file, sparsity)
    changed = changed_weights(file, masks)
    if not is_original(file):
        return lambda model: masks.apply_(model, changed)
    return lambda model: put_on(model, masks).apply_(model)


def put_on(model: nn.Module, masks: Masks) -> Masks:
    """Put masks of the original release, which go by its names, on the layers of a model."""
    return masks.rename(adapter_for(model).layout(model), original_names(model))


def _load_file(path: Path, family: str | None, config: Mapping[str, Any] | str | Path | None) -> nn.Module:
    if family is None:
        raise MultiflowError(
            f"'{path}' is a file and does not say which model it holds; pass {{family=}} one of "
            f"{', '.join(_released())}",
            field="family",
        )
    original: Original | None = FAMILIES[family].get(FAMILIES[family].release)
    if original is None or original.build is None:
        raise MultiflowError(f"files of family '{family}' cannot be read; give a Hugging Face id or folder")
    sizes = read_config(config, original.presets or {})
    state = read_tensors(path)
    with torch.device("meta"):
        model = original.build(sizes, state)
    fill(model, state, original, str(path))
    return model.eval()


def _read_config(source: str) -> dict[str, Any]:
    from transformers import PretrainedConfig

    try:
        config = PretrainedConfig.get_config_dict(source, local_files_only=True)[0]
    except OSError:
        if Path(source).is_dir():
            raise
        reach_hub(source)
        config = PretrainedConfig.get_config_dict(source)[0]
    if not isinstance(config, dict):
        raise MultiflowError(f"cannot load '{source}': its config.json holds no mapping; copy it again")
    check_depth(config, source)
    return config


def _check_family(source: str, family: str, model_type: str | None) -> None:
    """Raise an error where a folder or id is not of the family that was given."""
    given = FAMILIES[family]
    own = next((of for name, of, _ in model_types() if name == model_type), None)
    if own is not given:
        what = f"of family '{own.name}'" if own else f"of none of the families {', '.join(_released())}"
        raise MultiflowError(
            f"family '{family}' was given, but '{source}' is {what}: its config says model_type '{model_type}'; leave "
            "{family=} out, or give a file of the original release",
            field="family",
        )


def _load_pretrained(source: str, family: str | None, offload: Path | None = None, trust: bool = False) -> nn.Module:
    import transformers

    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise MultiflowError(
            f"folder '{source}' holds no config.json; give a folder written by save_pretrained, or a checkpoint file "
            "and its family"
        )
    check_files(source, ("config.json", "generation_config.json"), "model")
    try:
        for file in sorted(Path(source).glob("*.safetensors")):
            check_foreign(file)
    except MultiflowError as error:
        raise MultiflowError(f"cannot load folder '{source}': {error}") from error
    config: Mapping[str, Any] = {}
    try:
        config = _read_config(source)
        if family is not None:
            _check_family(source, family, config.get("model_type"))
        model_type = config.get("model_type", "")
        homes = [of.get(of.classes) for name, of, _ in model_types() if name == model_type and of.classes]
        architecture = (config.get("architectures") or ["AutoModel"])[0]
        found = [getattr(home, architecture) for home in (*homes, transformers) if hasattr(home, architecture)]
        model_class: Any = found[0] if found else transformers.AutoModel
        own_code = config.get("auto_map") if not found else None
        packed, structure = Path(source) / PACKED_FILE, Path(source) / STRUCTURE_FILE
        if own_code:
            auto = auto_class(source, own_code, architecture, trust)
            special = packed.is_file() or structure.is_file()
            model_class = own_class(source, own_code, auto) if special else getattr(transformers, auto)
        plain_class, smaller = model_class, (found or own_code) and structure.is_file()
        if smaller:
            model_class = _smaller(model_class, Structure.read(Path(source)))
        if packed.is_file():
            model, report = _unpacked(model_class, source, packed)
        else:
            place: dict[str, Any] = {"trust_remote_code": True} if own_code and not smaller else {}
            if offload is not None:
                place |= {"device_map": {"": "disk"}, "offload_folder": str(offload)}
            with nullcontext() if offload is None else without_mapping():
                model, report = model_class.from_pretrained(source, output_loading_info=True, **place)
        if smaller:
            model.__class__ = plain_class
    except MultiflowError:
        raise
    except Exception as error:  # what can go wrong here is transformers' and the hub's, in many classes
        if is_shortage(error):
            raise
        kind = config.get("quantization_config")
        if isinstance(kind, dict) and (how := kind.get("quant_method")):  # transformers names the package that reads it
            said = f"'{source}' is quantised ({how}) and cannot be pruned; give the model that it was made of"
            raise MultiflowError(said) from error
        raise _not_found(source, error) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        lacks = f"'{source}' lacks {counted(len(missing), 'weight')} of {type(model).__name__}"
        if offload is not None:
            raise MultiflowError(f"{lacks}, first '{missing[0]}': nothing to stream them from; load it whole")
        some = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        warnings.warn(f"{lacks}, now random: {some}", stacklevel=3)
    return model.eval()


def _smaller(model_class: Any, structure: Structure) -> Any:
    """Return a class whose models are built with other sizes than their config says."""

    def build(self: Any, config: Any, *args: Any, **options: Any) -> None:
        model_class.__init__(self, config, *args, **options)
        structure.apply_(self)

    return type(model_class.__name__, (model_class,), {"__init__": build, "__module__": model_class.__module__})


def _unpacked(model_class: Any, source: str, packed: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import GenerationConfig, PretrainedConfig

    config = (model_class.config_class or PretrainedConfig).from_pretrained(source)
    given = {"config": config, "state_dict": read_packed(packed), "output_loading_info": True}
    model, report = model_class.from_pretrained(None, **given)
    model.name_or_path = config.name_or_path = source  # where its processor is
    if (Path(source) / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model, report


def _released() -> list[str]:
    return [name for name, family in FAMILIES.items() if family.release]


def bundled_models() -> dict[str, Path]:
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
    if looks_like_path(source) or Path(source).suffix.lower() in FILE_SUFFIXES:
        raise MultiflowError(f"there is no file or folder '{source}'{beside(source)}; check the path")
    return source


def check_model(source: str) -> None:
    """Refuse what `find_model` has resolved if there is no model: before anything else is opened for it.

    Raises:
        MultiflowError: a path to nothing, or a name that neither the local Hugging Face cache nor the Hub knows.
    """
    if not exists(source):
        try:
            _read_config(source)
        except Exception as error:  # the hub's, in many classes
            raise _not_found(source, error) from error


def _not_found(source: str, error: Exception) -> MultiflowError:
    what = "cannot load folder '{}'" if Path(source).is_dir() else "'{}' is no file or folder here, nor on Hugging Face"
    near = "" if exists(source) or "/" not in source else beside(source)
    return MultiflowError(f"{what.format(source)}: {shortened(error)}{near}")


def open_model(
    source: str,
    family: str | None,
    config: str | None,
    device: str = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load MODEL, which `find_model` has resolved, in a dtype on a device, without a word from transformers."""
    place, kind = find_device(device), find_dtype(dtype)
    with quiet_transformers():
        model = load_model(source, family=family, config=config, trust_remote_code=trust_remote_code)
    return model.to(device=place, dtype=kind)


def is_read_by_processor(place: str, family: str | None = None) -> bool:
    """Tell of a model that is not loaded yet whether it is read through its own processor: by its config or family."""
    if Path(place).is_file():  # of a release whose models are those of transformers
        return family is not None and family in FAMILIES and not FAMILIES[family].models
    with quiet_transformers():
        try:
            model_type = _read_config(place).get("model_type")
        except Exception:  # loading will say what is wrong
            return False
    return model_type not in [name for name, *_ in model_types()]


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
            "give the tokenizer that belongs to the model with {tokenizer=DIR_OR_ID}",
            field="tokenizer",
        )
    return tokenizer


def model_files(source: str, names: tuple[str, ...]) -> list[Path]:
    """Return those of the named files that come with a model, from its folder or the Hugging Face cache.

    Python files that they name in a folder are among them.
    """
    if Path(source).is_dir():
        there = [path for name in names if (path := Path(source) / name).is_file()]
        there += inner_files(Path(source)) if {*names} >= READING else []
        return [*there, *code_files(there)] if any(Path(source).glob("*.py")) else there
    if Path(source).exists():
        return []
    from huggingface_hub import hf_hub_download

    found = []
    for name in names:
        try:
            found.append(Path(hf_hub_download(source, name)))
        except (OSError, ValueError):  # the model comes without this file, or the hub cannot be reached
            continue
    return [*found, *(inner_files(found[0].parent) if found and {*names} >= READING else ())]


def pixel_statistics(source: str) -> dict[str, Any]:
    """Return ``mean`` and ``std`` of the pixels that a model expects, where its folder says so."""
    for path in model_files(source, PROCESSOR_FILES[:1]):
        return read_statistics(path)
    return {}


@dataclass(frozen=True)
class Preprocessing:
    """How a model's inputs are made, and the files that say so."""

    tokenizer: Any = None  # the model's, or its `Reader`; None for models of images alone
    files: Sequence[Path] = ()  # to copy into the folder of the fine-tuned model, such as a processor's
    # ``mean`` and ``std`` of the pixels, where they are not CLIP's
    pixels: Mapping[str, Any] = field(default_factory=dict)


def load_preprocessing(
    given: str | None,
    source: str,
    model: Any,
    *,
    processor: Any = None,
    prompt: str | None = None,
    trust_remote_code: bool = False,
) -> Preprocessing:
    """Load how the inputs of a model are made; a model of images alone has no tokenizer.

    Args:
        given: folder or Hugging Face id of the tokenizer, where the model comes without its own.
        source: where the model was loaded from.
        model: the model.
        processor: of a model that is read through one: a processor, or its folder or id, where it is not its own.
        prompt: what such a model is asked of an image, where the data do not say.
        trust_remote_code: whether Python code that comes with the processor may run.
    """
    if reads_by_processor(model):
        family = family_of(model)
        assert family is not None
        return family.get(family.preprocessing)(source, model, processor or given, prompt, trust_remote_code)
    if processor is not None or prompt is not None:
        name = "processor" if processor is not None else "prompt"
        raise MultiflowError(
            f"{{{name}=}} was given, and the model is read without a processor; leave it out", field=name
        )
    text = getattr(model.config, "text", None)
    tokenizer = None if text is None else fitting_tokenizer(given, source, text["vocab_size"])
    return Preprocessing(tokenizer, model_files(source, PROCESSOR_FILES), pixel_statistics(source))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the progress bars and notes of transformers, its hub and accelerate off the screen inside the block."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    accelerate = getLogger("accelerate")
    levels, bars = (logging.get_verbosity(), hub.get_verbosity()), logging.is_progress_bar_enabled()
    before = accelerate.level
    logging.set_verbosity_error()
    hub.set_verbosity_error()
    accelerate.setLevel(ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub.set_verbosity(levels[1])
        accelerate.setLevel(before)
        if bars:
            logging.enable_progress_bar()
