"""Who owns a folder: the one place that claims, locks, resumes, compares and replaces folders of runs.

A run claims its folder for its settings, which are written when it begins and compared when it goes on::

    with run_folder(out, settings, resume=resume, keep=["step-*"]):     # one process at a time, all others are refused
        ...                                                             # new and failed before a step-*: nothing stays

A folder that is written in one go appears under its name only when it is whole (`whole_folder`). What makes a run the
run it is are its settings: `identity` hashes them, `check_same` says in one sentence which of them differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from multiflow.base.artifacts import read_facts, write_facts
from multiflow.base.errors import MultiflowError

SETTINGS = "settings.json"
LOCK = ".lock"
HALF_WRITTEN = (".*.tmp", ".tmp*")
"""Left by a process that was killed while it wrote: our own names, and those that safetensors gives beside a file."""


def identity(settings: Mapping[str, Any], digits: int = 8) -> str:
    """Hash settings, in whatever order they come, to hexadecimal digits.

    >>> identity({"seed": 1}), identity({"b": (1,), "a": 2}) == identity({"a": 2, "b": [1]})
    ('a4bbadc1', True)
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:digits]


def check_same(
    owner: str, saved: Mapping[str, Any], given: Mapping[str, Any], *, fix: str, free: Collection[str] = ()
) -> None:
    """Refuse to go on with what was begun with other settings.

    Args:
        owner: whose settings they are, as the message begins: ``"checkpoint 'a.safetensors'"``.
        saved: settings of the run that was begun; one that is missing has its default.
        given: settings now, as JSON gives them back.
        fix: what to do about it.
        free: names of settings that may differ.
    """
    differ = [name for name in {**saved, **given} if name not in free and saved.get(name) != given.get(name)]
    if differ:
        default = "default"
        what = ", ".join(f"{name} ({saved.get(name, default)} then, {given.get(name, default)} now)" for name in differ)
        raise MultiflowError(f"{owner} belongs to a run with other settings: {what}; {fix}")


@contextmanager
def run_folder(
    path: str | Path,
    settings: Any,
    *,
    resume: bool,
    record: str = SETTINGS,
    ended: str | None = None,
    keep: Collection[str] = (),
    passing: Collection[str] = (),
    free: Collection[str] = (),
    allow: Collection[str] = (),
) -> Iterator[Path]:
    """Claim an output folder for a run; inside the block no other run gets in, a killed one leaves no lock.

    A new run that fails before anything worth keeping is there leaves nothing.

    Args:
        path: a new or empty folder (hidden files do not count); with ``resume`` also that of the same run.
        settings: what decides what the run computes: a dataclass or a mapping of plain values.
        resume: go on with the run in the folder, or begin if there is none.
        record: the file that holds the settings.
        ended: the file that a run writes last; a folder with it is never gone on with. None: a run may go on after
            its end.
        keep: patterns of files and folders that make a failed run worth keeping, such as checkpoints.
        passing: patterns of files that go when the run ends.
        free: names of settings that may differ when it goes on.
        allow: names of files and folders that a new run may find there.

    Raises:
        MultiflowError: the folder cannot be written, another process is at work in it, or it holds a finished run, one
            with other settings, other files, or without ``resume`` an unfinished run.
    """
    path = Path(path)
    given = _plain(settings)
    above = _nearest(path)
    before = set(path.iterdir()) if path.is_dir() else set()
    if not path.is_dir():
        fresh_folder(path, ended or record, allow)
    with _alone(path):
        has_ended = ended is not None and (path / ended).is_file()
        going_on = (path / record).is_file() and not has_ended
        if has_ended and resume and (path / record).is_file():  # it was killed while it cleared up
            _remove(path, [*HALF_WRITTEN, *passing])
        if going_on:
            _check_run(path, record, given, resume, free)
            _remove(path, HALF_WRITTEN)
        else:
            fresh_folder(path, ended or record, allow)
        try:
            if not going_on:
                write_facts(path / record, given)
            yield path
        except BaseException:
            if not going_on and not any(any(path.glob(pattern)) for pattern in keep):
                for entry in set(path.iterdir()) - before:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                _remove_empty(path, above)
            raise
        _remove(path, passing)


def is_run_of(path: Path, settings: Any, *, free: Collection[str] = ()) -> bool:
    """Whether a folder holds a run with these settings, but for those that may differ, and maybe more."""
    try:
        saved = read_facts(path / SETTINGS, "settings", "")
    except MultiflowError:
        return False
    return all(saved.get(name) == of for name, of in _plain(settings).items() if name not in free)


def _plain(settings: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings) if is_dataclass(settings) else settings))  # type: ignore[arg-type]


def _check_run(path: Path, record: str, given: Mapping[str, Any], resume: bool, free: Collection[str]) -> None:
    if not resume:
        raise MultiflowError(
            f"output folder '{path}' already holds a run; go on with it with {{resume=True}}, or choose a new folder",
            field="resume",
        )
    saved = read_facts(path / record, "settings of a run", "choose a new folder")
    fix = "resume it with its own, or choose a new folder"
    check_same(f"output folder '{path}'", saved, given, fix=fix, free=free)


def fresh_folder(path: str | Path, ended: str, allow: Collection[str] = ()) -> Path:
    """Make an output folder and return it; one that holds files, or cannot be written, is an error.

    Args:
        path: the folder to make.
        ended: the file whose presence says that a run has ended there.
        allow: names of files and folders that may be there; hidden ones may.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise MultiflowError(f"output folder '{path}' is a file; choose another folder")
    try:
        there = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        if any(not name.startswith(".") and name not in allow for name in there):
            what = "a finished run" if (path / ended).exists() else "other files"
            raise MultiflowError(f"output folder '{path}' already holds {what}; choose a new folder or empty this one")
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MultiflowError(
            f"cannot write into output folder '{path}' ({error.strerror or error}); choose another folder"
        ) from error
    return path


@contextmanager
def whole_folder(out: str | Path, refuse: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yield a folder beside ``out`` that takes its place when all went well, and vanishes otherwise.

    Args:
        out: where the folder is to be; what lies there goes, a link keeps pointing where it does.
        refuse: ``f(place)``, which raises where something lies that must not go; called before and after the work. By
            default a folder that holds anything is refused.

    Raises:
        MultiflowError: ``out`` cannot be written, or must not be replaced.
    """
    place = Path(os.path.realpath(out))
    check = refuse or (lambda place: _check_empty(place, out))
    check(place)
    above = _nearest(place)
    new, old = (place.with_name(f".{place.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        check(place)
        if place.exists():
            place.rename(old)
        try:
            new.rename(place)
        except OSError:
            if old.exists():
                old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        _remove_empty(place.parent, above)
        if isinstance(error, OSError):
            raise MultiflowError(
                f"cannot write output folder '{out}' ({error.strerror or error}); choose another folder"
            ) from error
        raise


def _check_empty(place: Path, out: str | Path) -> None:
    if place.exists() and not place.is_dir():
        raise MultiflowError(f"output folder '{out}' is a file; choose another folder")
    if place.is_dir() and any(place.iterdir()):
        raise MultiflowError(f"output folder '{out}' already holds other files; choose a new folder or empty this one")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a file's lock inside the block; yields whether it was got, which without ``wait`` it may not be.

    Raises:
        MultiflowError: the disk has no locks that end with their process; another kind would outlive a kill.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError, UserWarning) as error:
        raise MultiflowError(
            f"'{path}' cannot be locked ({error}); take a folder that can be written, on a disk that locks files "
            "(NFS 4; Lustre mounted with flock)"
        ) from error
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other runs out of a folder; on a disk without locks nobody is kept out."""
    lock = FileLock(path / LOCK, timeout=0)
    try:
        _acquire(lock)
    except Timeout:
        raise MultiflowError(
            f"another process is at work in output folder '{path}'; wait until it ends, or choose a new folder"
        ) from None
    except (OSError, NotImplementedError, UserWarning):
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            (path / LOCK).unlink()
        lock.release()


def _acquire(lock: FileLock) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "flock not supported")  # instead of a lock that outlives its process
        lock.acquire()


def _remove(path: Path, patterns: Collection[str]) -> None:
    for pattern in patterns:
        for place in list(path.glob(pattern)):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink()


def _nearest(path: Path) -> Path:
    """The path if it exists, or the nearest folder above it that does."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _remove_empty(place: Path, above: Path) -> None:
    """Remove a folder and those above it up to one that was there before, as far as they are empty."""
    for folder in (place.absolute(), *place.absolute().parents):
        if above.is_relative_to(folder):
            return
        with suppress(OSError):  # it is not there, or not empty
            folder.rmdir()
