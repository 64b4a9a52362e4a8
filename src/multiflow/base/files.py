"""Files: ours are whole or not there; those that others wrote are regular files, read as JSON or YAML of plain values.

Ours are written under a temporary name, then renamed. Whatever bytes another file holds, the outcome is a value or one
`MultiflowError` that names the file. So it is with files that other libraries read for us, such as those of tokenizers
and processors: of damaged ones they raise anything (the tokenizers library even panics with what is no ``Exception``),
pipes and devices they wait for, and sizes they believe.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from safetensors import SafetensorError

from multiflow.base.errors import MultiflowError, did_you_mean


def beside(path: str | Path) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest name in the folder of a path to nothing, or an empty string."""
    place = Path(path).expanduser()
    try:
        return did_you_mean(place.name, [one.name for one in place.parent.iterdir()])
    except (OSError, ValueError):
        return ""


def write_atomically(path: str | Path, data: bytes | str | Callable[[Path], object]) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part; returns the path.

    ``data`` may be a function that writes to the path which it is given: what is large need not be held twice.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(data):
            temporary.touch()
            mode = temporary.stat().st_mode  # as for any file here; safetensors lets the owner alone read its own
            data(temporary)
            temporary.chmod(mode)
        else:
            # half of a character, out of some file of others, is no text: a question mark stands for it
            temporary.write_bytes(data.encode("utf-8", "replace") if isinstance(data, str) else data)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise MultiflowError(f"cannot write '{path}' ({said}); choose another place") from error
    finally:  # also when interrupted
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def plain(value: Any) -> Any:
    """Give a value that JSON does not know (a numpy number, a tensor, a path) as one it does: ``default=plain``."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


MOST_TEXT = 2**20
"""Bytes of a caption, a transcript or a page of templates at most."""

MOST_TABLE = 2**32
"""Bytes of a table or a JSON file at most."""

INNER = re.compile(r"\w+_tokenizer|additional_chat_templates")
"""Folders inside of a model's that hold files of its processor."""
OWN = ("config.json", "processor_config.json", "preprocessor_config.json")
MOST_BESIDE = 2**30
"""Bytes at most of a file that is copied with a model: its config, tokenizer, card."""

MOST_YAML = 2**18
"""Bytes of a YAML file at most: it is written by hand, and the parser is slow."""

MOST_NODES = 100_000
"""Values in a YAML file at most, with each alias counted as often as it is used."""

MOST_BITS = 10_000
"""Of a whole number in a YAML file."""

YAML_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
MERGE = "tag:yaml.org,2002:merge"
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def exists(path: str | Path) -> bool:
    """Whether there is something at a path; nothing is at one that no file system takes."""
    try:
        return os.path.exists(path)
    except (OSError, ValueError):  # too long, or not to be encoded
        return False


def files_in(folder: Path, wanted: Callable[[str], bool]) -> Iterator[str]:
    """Yield the names of what lies in a folder, is no folder itself and has a name that is wanted, in no order.

    The folder alone is read, and no more of it than is asked for: a data set may have a million files.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if wanted(entry.name):
                with suppress(OSError):  # a link in a circle leads to no folder
                    if entry.is_dir():
                        continue
                yield entry.name


def is_regular(path: str | Path) -> bool:
    """Whether there is a regular file at a path, be its name one that no file system takes."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def open_regular(path: str | Path) -> io.FileIO:
    """Open a regular file to read it, without a buffer; a pipe, a device or a folder does not block.

    Raises:
        OSError: it cannot be opened, or is no regular file; also for names that no file can have.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a zero byte in the name, or half of a character
        raise OSError(f"no file can have this name: {error}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("it is no regular file")
    return io.FileIO(handle)


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: the file.
        most: bytes at most.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
        MemoryError: there is no memory for it, which is no fault of the file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(f"it has {size} bytes, more than the {most} that are read")
        try:
            return file.readall()
        except MemoryError as error:
            raise MemoryError(f"the {size} bytes of '{path}'") from error


def inner_files(folder: Path) -> list[Path]:
    """Return the files of the folders for further tokenizers and templates inside of a model's."""
    inner = [path for path in folder.iterdir() if path.is_dir() and INNER.fullmatch(path.name)]
    return sorted(path for place in inner for path in place.iterdir() if path.is_file())


def copy_files(files: Iterable[Path], folder: Path) -> None:
    """Copy files that lie beside the weights of a model (config, tokenizer, processor, card) into a folder.

    Those of a folder inside of the model's keep it, as of the second tokenizer of InstructBLIP.

    Raises:
        MultiflowError: one is no regular file, or larger than any of these is.
    """
    for file in files:
        size = file.stat().st_size
        if not file.is_file() or size > MOST_BESIDE:
            found = f"has {size / 1e9:.1f} GB" if file.is_file() else "is no regular file"
            raise MultiflowError(
                f"'{file}' {found}; files beside the weights of a model, which are copied with it, have at most "
                f"{MOST_BESIDE / 1e9:.0f} GB: put it elsewhere"
            )
        (place := folder / file.parent.name if _is_inner(file.parent) else folder).mkdir(exist_ok=True)
        shutil.copyfile(file, place / file.name)


def _is_inner(place: Path) -> bool:
    """Tell whether a folder is one for further tokenizers or templates inside of a model's or processor's folder."""
    here, above = ({name for name in OWN if (at / name).is_file()} for at in (place, place.parent))
    return INNER.fullmatch(place.name) is not None and bool(above) and not here


def read_text(path: Path, wanted: str, most: int = MOST_TABLE) -> str:
    """Return the text of a UTF-8 file, without its byte order mark.

    Raises:
        MultiflowError: it cannot be read, or is no UTF-8; `wanted` says what was expected.
    """
    try:
        return read_regular(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MultiflowError(f"'{path}' is not UTF-8 text (byte {error.start}); expected {wanted}") from error
    except OSError as error:
        raise MultiflowError(f"cannot read '{path}': {error.strerror or error}; check the path") from error


def parse_json(text: str, called: str, line: int = 1) -> Any:
    """Parse JSON text; half of a surrogate pair, which is no character, becomes U+FFFD.

    A key that is given twice, with two values, is an error: readers differ in which of them they take.

    Args:
        text: the text.
        called: what errors call it.
        line: number of its first line.
    """
    try:
        content = json.loads(text, object_pairs_hook=_each_key_once)
    except _TwiceError as error:
        raise MultiflowError(f"{called} gives {error} twice, with two values; remove one") from error
    except json.JSONDecodeError as error:
        raise MultiflowError(
            f"{called} is not valid JSON: {error.msg} at line {line + error.lineno - 1}, column {error.colno}; "
            "repair it or fetch it again"
        ) from error
    except RecursionError as error:
        raise MultiflowError(f"{called} is JSON that is nested too deeply to be read; repair it") from error
    except MemoryError as error:
        raise MultiflowError(f"{called} does not fit into memory; split it into smaller files") from error
    except ValueError as error:  # a number of thousands of digits
        raise MultiflowError(f"{called} holds a number that is too long to be read ({error}); repair it") from error
    if r"\ud" in text or r"\uD" in text:
        plain = json.dumps(content, ensure_ascii=False)
        whole = plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        content = content if plain == whole else json.loads(whole)
    return content


class _TwiceError(Exception):
    """A key of a JSON object is given twice."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs) and (twice := [key for key, value in pairs if found[key] != value]):
        raise _TwiceError(f"the key '{twice[0]:.80}'")
    return found


def read_json(path: Path) -> Any:
    """Read a JSON file, or one with a JSON value on every line (then a list; ``.jsonl`` always is one).

    Raises:
        MultiflowError: it cannot be read; the error has line and column.
    """
    text = read_text(path, "a JSON file")
    try:
        if path.suffix.lower() != ".jsonl":
            return parse_json(text, f"'{path}'")
    except MultiflowError as error:
        cause = error.__cause__
        more = isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data" and "\n" in text[: cause.pos]
        if not more:
            raise
    lines = enumerate(text.split("\n"), 1)
    return [parse_json(line, f"'{path}'", number) for number, line in lines if line.strip()]


def parse_yaml(text: str, called: str) -> Any:
    """Parse YAML that holds what JSON can hold: mappings, lists, texts, numbers, booleans and null.

    Dates stay texts, ``1e-4`` is a number, half of a surrogate pair becomes U+FFFD. A key that is given twice is an
    error, and so are aliases that refer to themselves or expand to more than `MOST_NODES` values, and numbers of
    thousands of digits.

    Raises:
        MultiflowError: the text is no such YAML; `called` says whose it is.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError as error:
        raise MultiflowError(f"{called} is YAML that is nested too deeply to be read; simplify it") from error
    except Exception as error:  # values that do not fit their tags raise almost anything
        raise MultiflowError(f"{called} is no YAML ({' '.join(str(error).split())}); correct it") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values; see `parse_yaml`."""
    return parse_yaml(read_text(path, "a YAML file", MOST_YAML), f"'{path}'")


class _PlainLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, restricted to what `parse_yaml` says."""

    def get_single_node(self) -> yaml.Node | None:
        """Compose the document, and check it before anything is made of it."""
        node = super().get_single_node()
        if node is not None and _expanded(node, {}) > MOST_NODES:
            raise yaml.YAMLError(f"its aliases expand to more than {MOST_NODES} values")
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Compose a mapping; what ``<<`` takes over from others is not yet among its keys."""
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]:
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in first:
                raise yaml.YAMLError(f"key '{key.value}' is given twice, in line {first[name]} and in line {line}")
            first[name] = line
        return node


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    value = loader.construct_yaml_int(node)
    if value.bit_length() > MOST_BITS:  # hexadecimal ones have no limit, and none can be said in a message
        raise yaml.YAMLError(f"line {node.start_mark.line + 1} has a number of thousands of digits")
    return value


def _plain_text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return loader.construct_yaml_str(node).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_PlainLoader.add_constructor("tag:yaml.org,2002:str", _plain_text)
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases expanded."""
    line = node.start_mark.line + 1
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise yaml.YAMLError(f"the value in line {line} holds itself")
        return sizes[id(node)]
    if node.tag not in YAML_TAGS and node.tag != MERGE:
        raise yaml.YAMLError(f"line {line} has a value of type '{node.tag}'; expected plain values")
    sizes[id(node)] = 0  # not known yet: met again below, the node holds itself
    inner = [] if isinstance(node, yaml.ScalarNode) else node.value
    parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
    sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in parts)
    return sizes[id(node)]


MOST_BYTES = 2**28  # of a file of a tokenizer or processor


def is_damage(error: BaseException | None) -> bool:
    """Whether an error of a library for tokenizers or processors comes of the files that it reads."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def shortened(error: BaseException | None) -> str:
    """Return what an error of another library says, in one line of at most 200 characters."""
    said = " ".join(str(error).split()).rstrip(". ") or type(error).__name__
    return said if len(said) <= 200 else said[:197] + "..."


def check_files(folder: str | Path, names: Iterable[str], what: str) -> list[str]:
    """Return which of the named files a folder holds; one that is no regular file, or too large, is refused.

    Args:
        folder: where another library is going to read.
        names: of the files that it may read there.
        what: they belong to, for errors.
    """
    held = [name for name in names if exists(Path(folder) / name)]
    for name in held:
        path = Path(folder) / name
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise MultiflowError(f"cannot read '{path}': {error.strerror or error}; check the {what}") from error
        if size > MOST_BYTES:
            raise MultiflowError(f"'{path}' has {size} bytes, too many for a {what}; copy it again")
    return held


@contextmanager
def naming_damage(what: str, fix: str, field: str | Sequence[str] = ()) -> Iterator[None]:
    """Turn whatever another library raises inside the block into one sentence.

    Args:
        what: goes wrong, as the message begins.
        fix: what to do about it.
        field: arguments that the fix names.
    """
    try:
        yield
    except MultiflowError:
        raise
    except BaseException as error:
        if not is_damage(error):
            raise
        raise MultiflowError(f"{what}: {shortened(error)}; {fix}", field=field) from error
