from __future__ import annotations

import io
import tarfile

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import open_data
from multiflow.data.dataset import BrokenItem
from tests.data.worlds import number_of, png, samples, write_shard


def test_pairs_of_all_shards_in_order_and_at_random(tmp_path):
    for i in range(2):
        write_shard(tmp_path / f"{i:05d}.tar", samples(range(5 * i, 5 * i + 5)))
    data = open_data(tmp_path)
    assert len(data) == 10
    for i in (7, 0, 9, 3, 7):
        pair = data[i]
        assert pair.captions == (f"picture {i}",)
        assert number_of(pair.image) == i
        assert pair.key == f"{i // 5:05d}.tar/{i:09d}"
    assert not data.skipped


def test_the_caption_of_the_json_stands_in_for_a_missing_text(tmp_path):
    members = {name: content for name, content in samples(range(2)).items() if not name.endswith(".txt")}
    data = open_data(write_shard(tmp_path / "a.tar", members))
    assert [pair.captions for pair in data] == [("picture 0",), ("picture 1",)]


def test_samples_without_image_or_caption_are_noted(tmp_path):
    members = samples(range(3))
    del members["000000000.jpg"], members["000000001.txt"], members["000000001.json"]
    data = open_data(write_shard(tmp_path / "a.tar", members))
    assert len(data) == 1
    assert data.skipped == (("a.tar/000000000", "no image"), ("a.tar/000000001", "no caption"))


def test_no_captions_at_all(tmp_path):
    path = write_shard(tmp_path / "a.tar", {"0.jpg": png(0), "1.jpg": png(1)})
    with pytest.raises(MultiflowError, match=r"captions are missing: .* holds 2 images and no caption"):
        open_data(path)


@pytest.mark.parametrize("where", ["in an image", "in a header"])
def test_a_shard_cut_in_the_middle_gives_what_comes_before(tmp_path, where):
    path = write_shard(tmp_path / "a.tar", samples(range(6)))
    content = path.read_bytes()
    start = content.index(b"000000004.jpg")
    path.write_bytes(content[: start + (520 if where == "in an image" else 100)])
    write_shard(tmp_path / "b.tar", samples(range(6, 8)))
    data = open_data(tmp_path)
    assert [pair.captions[0] for pair in data] == [f"picture {i}" for i in (0, 1, 2, 3, 6, 7)]
    assert [skip.key for skip in data.skipped] == ["a.tar"]
    assert "cut or damaged" in data.skipped[0].reason


def test_a_cut_within_a_sample_is_reported_once(tmp_path):
    path = write_shard(tmp_path / "a.tar", samples(range(3)))
    content = path.read_bytes()
    for member, kept in (("000000002.txt", 2), ("000000002.json", 3)):
        path.write_bytes(content[: content.index(member.encode()) + 100])
        data = open_data(path)
        assert [pair.captions[0] for pair in data] == [f"picture {i}" for i in range(kept)]
        assert [skip.key for skip in data.skipped] == ["a.tar"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar(tmp_path, form):
    folder = "f" * 60
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        tar.addfile(tarfile.TarInfo(folder) if form == tarfile.USTAR_FORMAT else directory(folder))
        for i in range(3):
            for suffix, content in (("png", png(i)), ("txt", f"picture {i}".encode())):
                member = tarfile.TarInfo(f"{folder}/{'n' * 60}{i}.{suffix}")
                member.size, member.mtime = len(content), 1.5  # a fraction of a second needs an extended header
                tar.addfile(member, io.BytesIO(content))
    data = open_data(tmp_path / "a.tar")
    assert [(pair.captions[0], number_of(pair.image)) for pair in data] == [(f"picture {i}", i) for i in range(3)]
    assert data[1].key == f"a.tar/{folder}/{'n' * 60}1"
    assert [skip.reason for skip in data.skipped if skip.key == "a.tar"] == []


def directory(name):
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    return member


def test_a_file_that_is_no_tar(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"not a tar" * 200)
    with pytest.raises(MultiflowError, match="no .* pair .*a.tar: the shard is cut"):
        open_data(path)


def test_broken_items_say_why(tmp_path):
    members = samples(range(3))
    members["000000000.jpg"] = b"no image"
    members["000000001.txt"] = b" \n"
    members["000000002.txt"] = b"\xff\xfe\xfa"
    data = open_data(write_shard(tmp_path / "a.tar", members))
    for index, reason in enumerate(("not an image file", "its caption is empty", "not UTF-8")):
        with pytest.raises(BrokenItem, match=reason) as caught:
            data[index]
        assert caught.value.skip.key == f"a.tar/{index:09d}"


def test_a_shard_that_vanished_is_a_broken_item(tmp_path):
    path = write_shard(tmp_path / "a.tar", samples(range(2)))
    data = open_data(path)
    path.unlink()
    with pytest.raises(BrokenItem, match=r"No such file"):
        data[0]


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.size = len(content)
    for key, value in fields.items():
        setattr(found, key, value)
    return found, content


def archive(members, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pair(key: str, number: int = 0, **fields):
    return [member(f"{key}.png", png(number), **fields), member(f"{key}.txt", f"picture {number}".encode(), **fields)]


@pytest.mark.parametrize(
    ("kind", "why"),
    [(tarfile.LNKTYPE, "link"), (tarfile.SYMTYPE, "link"), (tarfile.FIFOTYPE, "pipe"), (tarfile.CHRTYPE, "device")],
)
def test_links_pipes_and_devices_are_named_among_what_is_left_out(tmp_path, kind, why):
    others = [member(f"9.{suffix}", type=kind, linkname=f"0.{suffix}") for suffix in ("png", "txt")]
    (tmp_path / "a.tar").write_bytes(archive(pair("0") + others))
    data = open_data(tmp_path)
    assert [skip.key for skip in data.skipped] == ["a.tar/9.png", "a.tar/9.txt"]
    assert all(why in skip.reason for skip in data.skipped)
    assert len(data) == 1


@pytest.mark.parametrize(
    "says",
    [{"GNU.sparse.major": "1", "GNU.sparse.name": "0.txt"}, {"GNU.sparse.map": "0,3"}, {"size": "3"}],
    ids=["sparse 1.0", "sparse 0.1", "size"],
)
def test_extended_headers_that_change_what_a_member_holds_are_no_caption_in_silence(tmp_path, says):
    image, caption = pair("1", 1)
    (tmp_path / "a.tar").write_bytes(archive([*pair("0"), image, (caption[0], caption[1])]))
    whole = open_data(tmp_path)
    caption[0].pax_headers = says
    (tmp_path / "a.tar").write_bytes(archive([*pair("0"), image, caption]))
    data = open_data(tmp_path)
    assert (len(whole), len(data)) == (2, 1)
    assert "sparse" in data.skipped[0].reason


@pytest.mark.parametrize("comment", ["x path=evil.png", "x\n9 path=evil.png", "p\u00e4th", "x" * 300])
def test_what_an_extended_header_says_beside_the_name_is_no_name(tmp_path, comment):
    (tmp_path / "a.tar").write_bytes(archive(pair("0", pax_headers={"comment": comment})))
    assert [item.key for item in open_data(tmp_path)] == ["a.tar/0"]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_names_of_two_lines(tmp_path, form):
    names = ["n" * 150, "n" * 150 + "\n12 path=evil", "d\u00e4/" * 60 + "z"]
    (tmp_path / "a.tar").write_bytes(archive([one for key in names for one in pair(key)], form))
    assert [item.key for item in open_data(tmp_path)] == [f"a.tar/{name}" for name in names]


def test_a_shard_joined_behind_another_is_told(tmp_path):
    first, second = archive(pair("0")), archive(pair("1"))
    (tmp_path / "a.tar").write_bytes(first + second)
    data = open_data(tmp_path)
    assert len(data) == 1
    assert "joined behind it" in data.skipped[0].reason


def test_kinds_of_members_that_are_files_and_folders_all_the_same(tmp_path):
    members = [member("d/", type=b"\0"), *pair("d/0", type=b"\0"), *pair("d/1", 1, type=b"7")]
    (tmp_path / "a.tar").write_bytes(archive(members))
    data = open_data(tmp_path)
    assert [number_of(item.image) for item in data] == [0, 1]
    assert not data.skipped


def test_a_second_image_of_a_sample_and_a_mark_before_its_caption(tmp_path):
    members = [*pair("0"), member("0.jpg", png(7)), member("1.png", png(1)), member("1.txt", "\ufeffone".encode())]
    (tmp_path / "a.tar").write_bytes(archive(members))
    data = open_data(tmp_path)
    assert [(number_of(item.image), item.captions) for item in data] == [(0, ("picture 0",)), (1, ("one",))]
    assert data.skipped == (("a.tar/0", "it has 2 images; the first is used"),)


def test_a_shard_that_has_become_shorter_is_a_broken_item(tmp_path):
    path = write_shard(tmp_path / "a.tar", samples(range(2)))
    data = open_data(path)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"picture 1") + 4])
    assert data[0].captions == ("picture 0",)
    with pytest.raises(BrokenItem, match="shorter"):
        data[1]
