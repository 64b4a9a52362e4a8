"""Hugging Face data sets of pairs or speech: folders of ``save_to_disk``, parquet files, names on the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from multiflow.base.errors import MultiflowError, unknown
from multiflow.base.files import exists
from multiflow.base.guards import raise_shortage
from multiflow.data.audio import Sound, decode_sound, load_sound
from multiflow.data.dataset import BrokenItem, Clip, Dataset, Known, Pair, Question
from multiflow.data.images import choose_split, load_image, open_image, refuse_split, split_in_name, texts_of
from multiflow.data.layouts import LAYOUTS, DataLayout, Place
from multiflow.data.tables import turns_of

PREFIX = "hf:"
IMAGE_NAMES = ("image", "images", "img", "picture", "jpg", "png", "webp")
TEXT_NAMES = ("caption", "captions", "text", "texts", "txt", "sentence", "sentences", "description")
AUDIO_NAMES = ("audio", "sound", "speech", "wav", "flac", "mp3")
SAID_NAMES = ("transcription", "transcript", "sentence", "normalized_text", "text", "raw_transcription", "raw_text")
ANSWER_NAMES = ("answer", "answers", "multiple_choice_answer", "label")
TALK_NAMES = ("conversations", "messages", "conversation", "texts")
SPEECH = (("from", "value"), ("role", "content"))  # who, and what
TURN = {"user", "assistant"}  # both sides in one entry
TEXT_TYPES = ("string", "large_string", "string_view")
BYTE_TYPES = ("binary", "large_binary", "binary_view")


@dataclass(frozen=True)
class Columns:
    """What ``hf:NAME,OPTION=VALUE,...`` may say beside the name."""

    image: str | None = None
    text: str | None = None
    config: str | None = None
    split: str | None = None


def _recognise(place: Place) -> bool:
    if place.source:
        return True
    return _is_saved(place.path) or bool(_parquet_files(place.path))


def _open(place: Place) -> Dataset[Pair]:
    if place.source:
        return _open_named(place)
    choice = Columns(place.image_column, place.text_column)
    if _is_saved(place.path):
        return _open_saved(place.path, place.split, choice)
    return _open_parquet(_parquet_files(place.path), place.path, place.split, choice)


def _open_named(place: Place) -> Dataset[Pair]:
    """Open ``hf:NAME,image=COLUMN,text=COLUMN,config=CONFIG,split=SPLIT``; NAME is on the Hub, or a folder or file.

    What is given beside the name goes before what it says.
    """
    name, *options = place.source.removeprefix(PREFIX).split(",")
    known = [field.name for field in fields(Columns)]
    given = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in known or not value:
            raise MultiflowError(
                f"'{option}' in '{place.source}' is not understood; expected hf:NAME and options of "
                f"{', '.join(f'{word}=' for word in known)} after commas, such as hf:owner/name,text=caption"
            )
        given[key] = value
    choice = Columns(**given)
    choice = replace(choice, image=place.image_column or choice.image, text=place.text_column or choice.text)
    split, path = place.split or choice.split, Path(name).expanduser()
    if not name:
        raise MultiflowError(f"'{place.source}' names no data set; expected hf:OWNER/NAME or hf:FOLDER")
    if not exists(path):
        return _open_on_hub(name, choice, split)
    if _is_saved(path):
        return _open_saved(path, split, choice)
    if files := _parquet_files(path) or _parquet_files(path / "data"):
        return _open_parquet(files, path, split, choice)
    raise MultiflowError(f"'{name}' holds no Hugging Face data set; expected a folder of save_to_disk or parquet files")


def _is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    whole = ("dataset_info.json", "state.json")
    return (folder / "dataset_dict.json").is_file() or all((folder / name).is_file() for name in whole)


def _parquet_files(path: Path) -> list[Path]:
    return [path] if path.suffix == ".parquet" and path.is_file() else sorted(path.glob("*.parquet"))


def _open_saved(folder: Path, split: str | None, choice: Columns) -> Dataset[Pair]:
    """Open a folder that ``save_to_disk`` wrote: one table, or one a split."""
    library = _library()
    where = f"'{folder}'"
    _check_regular(folder.rglob("*"))
    try:
        table = library.load_from_disk(str(folder))
    except Exception as error:  # Arrow and the library raise errors of their own
        raise_shortage(error)
        raise _unreadable(where, error) from error
    if isinstance(table, dict):
        table = table[_choose(split, list(table), where)]
    elif split != str(table.split):
        refuse_split(split, f"{where}, one table,")
    return _dataset(table, choice, str(folder))


def _open_parquet(files: Sequence[Path], source: Path, split: str | None, choice: Columns) -> Dataset[Pair]:
    """Open parquet files, those of one split if their names tell splits; the library keeps a copy in its cache."""
    library = _library()
    where = f"'{source}'"
    _check_regular(files)
    splits = [split_in_name(path) for path in files]
    if None not in splits:
        held = list(dict.fromkeys(name for name in splits if name))
        chosen = _choose(split, held, where)
        files = [path for path, name in zip(files, splits, strict=True) if name == chosen]
    else:
        refuse_split(split, f"{where}, whose files name none,")
    try:
        table = library.load_dataset("parquet", data_files=list(map(str, files)), split="train")
    except Exception as error:  # Arrow and the library raise errors of their own
        raise_shortage(error)
        raise _unreadable(where, error) from error
    return _dataset(table, choice, str(source))


def _check_regular(paths: Iterable[Path]) -> None:
    """Refuse pipes and devices, for which the library would wait."""
    for path in paths:
        if not path.is_dir() and not path.is_file():
            raise MultiflowError(f"'{path}' is no regular file; copy the data set again")


def _open_on_hub(name: str, choice: Columns, split: str | None) -> Dataset[Pair]:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise MultiflowError(f"no data at '{name}': no such file or folder; check the path")
    library = _library()
    where = f"'{name}' on the Hugging Face Hub"
    _reach(name)
    try:
        held = list(library.get_dataset_split_names(name, choice.config))
        table = library.load_dataset(name, choice.config, split=_choose(split, held, where))
    except MultiflowError:
        raise
    except Exception as error:  # no such configuration, a script that would have to run, a broken download, ...
        raise_shortage(error)
        raise _unreadable(where, error) from error
    return _dataset(table, choice, name)


def _reach(name: str) -> None:
    """Ask the Hub for a data set once and quickly, unless HF_HUB_OFFLINE tells to stay away from it."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(name, timeout=5)
    except Exception as error:  # its HTTP library, and with it the class of a failed connection, differs by version
        raise MultiflowError(
            f"no data set '{name}' on this disk, nor on the Hugging Face Hub from here; give the path of a folder, "
            "or set HF_HUB_OFFLINE=1 to use what the cache holds"
        ) from error


def _choose(split: str | None, held: Sequence[str], where: str) -> str:
    """As `choose_split`, where ``val`` may be called ``validation``, and a lone split is taken by itself."""
    if split is None and len(held) == 1:
        return held[0]
    return (
        "validation"
        if split == "val" and split not in held and "validation" in held
        else choose_split(split, held, where)
    )


def _dataset(table: Any, choice: Columns, source: str) -> Dataset[Any]:
    """Take questions with their answers, conversations, or texts, whichever columns there are; the user's own first."""
    kinds = {name: _kind_of(feature, name) for name, feature in table.features.items()}
    if _is_speech(kinds, choice):
        return _speech(table, choice, kinds, source)
    image = _column("image", choice.image, IMAGE_NAMES, kinds, table.features, source)
    answer = next((name for name in ANSWER_NAMES if kinds.get(name) in ("text", "answers")), None)
    talk = next((name for name in TALK_NAMES if kinds.get(name) == "talk"), None)
    read: Any
    if choice.text is None and answer is not None and kinds.get("question") == "text":
        columns, kind, read = [image, "question", answer], "questions", _read_question
    elif choice.text is None and talk is not None and not any(kinds.get(name) == "text" for name in TEXT_NAMES):
        columns, kind, read = [image, talk], "pairs", _read_talk
    else:
        columns = [image, _column("text", choice.text, TEXT_NAMES, kinds, table.features, source)]
        kind, read = "pairs", _read
    table = _take(table, columns, source)
    if not len(table):
        raise MultiflowError(f"'{source}' holds no rows; expected images with captions")
    return Dataset(kind, "Hugging Face data set", source, len(table), partial(read, table, *columns))  # type: ignore[arg-type]


def _take(table: Any, columns: list[str], source: str) -> Any:
    """Take columns, the first of which gives its bytes, so that a broken image or sound costs itself alone."""
    table = table.select_columns(columns)
    try:  # Arrow trusts what a file says of lengths, and reads what lies behind its end
        table.data.validate(full=True)
    except Exception as error:
        raise_shortage(error)
        raise _unreadable(f"'{source}'", error) from error
    column = columns[0]
    library, feature = _library(), table.features[column]
    for type_ in _decoders(library):
        if isinstance(feature, type_):
            return table.cast_column(column, type_(decode=False))
        if (inner := _element(feature)) is not None and isinstance(inner, type_):
            return table.cast_column(column, type(feature)(type_(decode=False)))
    return table


def _decoders(library: Any) -> list[Any]:
    return [type_ for name in ("Image", "Audio") if (type_ := getattr(library, name, None)) is not None]


def _is_speech(kinds: Mapping[str, str], choice: Columns) -> bool:
    """Whether sounds are meant: the user's column, or there are sounds and no images."""
    if choice.image is not None:
        return kinds.get(choice.image) == "audio"
    return "audio" in kinds.values() and "image" not in kinds.values()


def _speech(table: Any, choice: Columns, kinds: dict[str, str], source: str) -> Dataset[Clip]:
    """Take sounds with what is said in them, in the usual column that comes first in `SAID_NAMES`."""
    audio = _column("audio", choice.image, AUDIO_NAMES, kinds, table.features, source)
    usual = next((name for name in SAID_NAMES if kinds.get(name) == "text"), None)
    said = _column("text", choice.text or usual, SAID_NAMES, kinds, table.features, source)
    texts, table = table.select_columns([said]), _take(table, [audio, said], source)
    if not len(table):
        raise MultiflowError(f"'{source}' holds no rows; expected sounds with transcripts")
    read, known = partial(_read_clip, table, audio, said), partial(_known_clip, texts, said)
    return Dataset("clips", "Hugging Face data set", source, len(table), read, known=known)


def _column(
    kind: str, given: str | None, usual: Sequence[str], kinds: dict[str, str], features: Any, source: str
) -> str:
    """Return the one column of a kind: the one given, the only one there is, or the only one with a usual name."""
    if given is not None and given not in kinds:
        raise unknown(f"column of '{source}'", given, kinds)
    able = [name for name, held in kinds.items() if held == kind] if given is None else [given]
    named = [name for name in able if name.lower() in usual]
    if len(found := able if len(able) == 1 else named) == 1 and kinds[found[0]] == kind:
        return found[0]
    option = "image" if kind == "audio" else kind
    columns = ", ".join(f"{name} ({_describe(feature)})" for name, feature in features.items())
    problem = f"column '{given}' of '{source}' holds no {kind}" if given else f"'{source}' has no plain {kind} column"
    raise MultiflowError(f"{problem}; its columns are {columns}; name one with hf:{source},{option}=COLUMN")


def _kind_of(feature: Any, name: str = "") -> str:
    """Return ``image``, ``audio``, ``text`` (also lists of them), ``talk``, ``answers`` or ``other``.

    Bytes that no type tells are a sound where their column is named like one, else an image.
    """
    audio = getattr(_library(), "Audio", None)
    if audio is not None and isinstance(feature, audio):
        return "audio"
    bare = "audio" if name.lower() in AUDIO_NAMES else "image"
    inner = _element(feature)
    if isinstance(inner, dict):
        talks = any(speaker in inner and said in inner for speaker, said in SPEECH) or inner.keys() >= TURN
        return "talk" if talks else "answers" if "answer" in inner else "other"
    if inner is not None and isinstance(inner, _library().Image):
        return "image"
    if inner is not None:
        return "text" if getattr(inner, "dtype", "") in TEXT_TYPES else "other"
    if isinstance(feature, dict):
        return bare if "bytes" in feature else "other"
    if isinstance(feature, _library().Image):
        return "image"
    if getattr(feature, "dtype", "") in BYTE_TYPES:
        return bare
    return "text" if getattr(feature, "dtype", "") in TEXT_TYPES else "other"


def _describe(feature: Any) -> str:
    inner = _element(feature)
    if inner is not None:
        return f"list of {_describe(inner)}"
    plain = isinstance(feature, (dict, list, *_decoders(_library())))
    return type(feature).__name__ if plain else str(getattr(feature, "dtype", type(feature).__name__))


def _element(feature: Any) -> Any:
    """Return the type of a list's elements, or None for what is no list; the library had two forms of lists."""
    return feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)


def _row(table: Any, index: int) -> tuple[Any, str]:
    key = f"row {index}"
    try:
        return table[index], key
    except Exception as error:  # Arrow and the library raise errors of their own
        raise_shortage(error)
        raise BrokenItem(key, " ".join(str(error).split()) or type(error).__name__) from error


def _image(given: Any, key: str) -> Any:
    """Return the image of a cell: its bytes, where they are, or a list of one."""
    if isinstance(given, list):
        if len(given) != 1:
            raise BrokenItem(key, f"it has {len(given)} images" if given else "it has no image")
        given = given[0]
    held = given if isinstance(given, dict) else {"bytes": given}
    if held.get("bytes"):
        return open_image(held["bytes"], key)
    if held.get("path"):
        return load_image(held["path"], key)
    raise BrokenItem(key, "it has no image")


def _sound(given: Any, key: str) -> Sound:
    """Return the sound of a cell: of its bytes, where they are, else of the file that it names."""
    held = given if isinstance(given, dict) else {"bytes": given}
    if held.get("bytes"):
        return decode_sound(held["bytes"], key)
    if held.get("path"):
        return load_sound(held["path"], key)
    raise BrokenItem(key, "it has no sound")


def _read_clip(table: Any, audio: str, said: str, index: int) -> Clip:
    row, key = _row(table, index)
    text = " ".join(_texts(row[said]))
    if not text:
        raise BrokenItem(key, "no transcript")
    return Clip(_sound(row[audio], key), text, key)


def _known_clip(table: Any, said: str, index: int) -> Known | None:
    """Return what is said in a clip without reading its sound; nothing of a row that cannot be used."""
    try:
        texts = _texts(_row(table, index)[0][said])
    except BrokenItem:
        return None
    return Known(None, (" ".join(texts),)) if texts else None


def _texts(given: Any) -> tuple[str, ...]:
    return texts_of(given if isinstance(given, str) else [text or "" for text in given or ()])


def _read(table: Any, image: str, text: str, index: int) -> Pair:
    row, key = _row(table, index)
    captions = _texts(row[text])
    if not captions:
        raise BrokenItem(key, "its caption is empty")
    return Pair(_image(row[image], key), captions, key)


def _read_question(table: Any, image: str, question: str, answer: str, index: int) -> Question:
    row, key = _row(table, index)
    said = row[answer]
    if isinstance(said, list) and said and isinstance(said[0], dict):
        said = [one.get("answer") for one in said]
    if not (asked := (row[question] or "").strip()):
        raise BrokenItem(key, "it has no question")
    return Question(_image(row[image], key), asked, _texts(said), key)


def _read_talk(table: Any, image: str, talk: str, index: int) -> Pair:
    row, key = _row(table, index)
    turns = list(turns_of(_said(row[talk] or ())))
    if not turns:
        raise BrokenItem(key, "nobody answers in it")
    prompts, captions = zip(*turns, strict=True)
    return Pair(_image(row[image], key), captions, key, prompts)


def _said(turns: Any) -> Iterator[tuple[str, str]]:
    """Yield who says what in a conversation, whichever names it has: from/value, role/content, user/assistant."""
    for turn in turns:
        for speaker, said in SPEECH:
            if speaker in turn and said in turn:
                content = turn[said]
                parts = content if isinstance(content, list) else [{"text": content}]
                yield str(turn[speaker]), "\n".join(part["text"] for part in parts if part.get("text"))
                break
        else:
            yield from ((speaker, turn[speaker] or "") for speaker in ("user", "assistant"))


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MultiflowError(
            "Hugging Face data sets need the library 'datasets', which is not installed; "
            "install it with: in the checkout: pip install -e '.[data]'"
        ) from error
    return datasets


def _unreadable(where: str, error: Exception) -> MultiflowError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return MultiflowError(f"the data set {where} cannot be read: {reason}; check it, or name its config=, split=")


LAYOUTS.add(
    "huggingface",
    DataLayout(
        "a Hugging Face data set on disk (save_to_disk, or parquet files), or hf:OWNER/NAME on the Hub",
        _recognise,
        _open,
        splits=True,
        prefix=PREFIX,
        order=2,
    ),
)
