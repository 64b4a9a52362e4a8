"""Speech as corpora are released: LibriSpeech, Common Voice, LJSpeech, Kaldi, folders of splits."""

from __future__ import annotations

import shutil

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import open_data
from tests.families.automatic.speech import write_tones

pytest.importorskip("soundfile")


def heard(data):
    return {clip.key: clip.text for clip in data}


def tones(folder, *names):
    write_tones(folder, dict.fromkeys(names, "x"))
    (folder / "metadata.csv").unlink()
    return folder


def chapter(root, speaker, number, *said):
    folder, id = root / speaker / number, f"{speaker}-{number}"
    tones(folder, *(f"{id}-{at:04d}.flac" for at in range(len(said))))
    lines = [f"{id}-{at:04d} {text}\n" for at, text in enumerate(said)]
    (folder / f"{id}.trans.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def libri(tmp_path):
    root = tmp_path / "LibriSpeech"
    chapter(root / "train-clean-100", "19", "198", "NORTHANGER ABBEY", "THIS LITTLE WORK")
    chapter(root / "train-clean-360", "14", "208", "CHAPTER SIXTEEN")
    chapter(root / "dev-clean", "84", "121123", "GO DO YOU HEAR")
    chapter(root / "test-clean", "61", "70968", "HE BEGAN")
    chapter(root / "test-other", "367", "130732", "LOBSTERS")
    (root / "BOOKS.TXT").write_text("14 | a book\n")
    return root


def test_librispeech_by_part_speaker_and_chapter(libri):
    for source in (libri / "dev-clean", libri / "dev-clean" / "84", libri / "dev-clean" / "84" / "121123"):
        assert heard(open_data(source)) == {"84-121123-0000.flac": "GO DO YOU HEAR"}
    assert open_data(libri / "dev-clean").layout == "LibriSpeech"


def test_parts_of_librispeech_are_splits(libri):
    assert list(heard(open_data(libri))) == ["19-198-0000.flac", "19-198-0001.flac", "14-208-0000.flac"]
    assert list(heard(open_data(libri, split="val"))) == ["84-121123-0000.flac"]
    assert list(heard(open_data(libri, split="test-other"))) == ["367-130732-0000.flac"]
    assert len(open_data(libri, split="all")) == 6
    with pytest.raises(MultiflowError, match="test-clean, test-other"):
        open_data(libri, split="test")
    shutil.rmtree(libri / "test-other")
    assert list(heard(open_data(libri, split="test"))) == ["61-70968-0000.flac"]
    with pytest.raises(MultiflowError, match="no splits"):
        open_data(libri / "dev-clean", split="test")


def test_lines_of_librispeech_without_sound_or_words_are_left_out(libri):
    part = libri / "dev-clean"
    file = part / "84" / "121123" / "84-121123.trans.txt"
    file.write_text(file.read_text() + "84-121123-0001 NOBODY\n../../x NO\n\n84-121123-0000\n")
    data = open_data(part)
    assert len(data) == 1
    assert [skip.reason for skip in data.skipped][-1] == "no transcript"
    assert len(data.skipped) == 3


@pytest.fixture
def voices(tmp_path):
    root = tmp_path / "cv-corpus-17.0" / "en"
    tones(root / "clips", "a.wav", "b.wav", "c.wav")
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\n"
    (root / "train.tsv").write_text(f'{header}1\ta.wav\t7\t"Yes", he said.\t2\n')
    (root / "dev.tsv").write_text(f"{header}1\tb.wav\t7\tTwo words\t2\n")
    (root / "validated.tsv").write_text(
        f"{header}1\tc.wav\t7\tThree\t2\n1\td.wav\t7\tFour\t2\n1\n1\t../x.wav\t1\tUp\t1\n"
    )
    (root / "clip_durations.tsv").write_text("clip\tduration[ms]\na.wav\t4000\n")
    return root


def test_common_voice(voices):
    for source in (voices, voices.parent):
        assert heard(open_data(source)) == {"a.wav": '"Yes", he said.'}
        assert heard(open_data(source, split="val")) == {"b.wav": "Two words"}
    assert heard(open_data(voices / "dev.tsv")) == {"b.wav": "Two words"}
    data = open_data(voices, split="validated")
    assert heard(data) == {"c.wav": "Three"}
    assert [skip.key for skip in data.skipped] == ["d.wav", "line 4", "line 5"]
    with pytest.raises(MultiflowError, match="dev, train, validated"):
        open_data(voices, split="test")
    with pytest.raises(MultiflowError, match="one table"):
        open_data(voices / "dev.tsv", split="test")


def test_ljspeech(tmp_path):
    root = tmp_path / "LJSpeech-1.1"
    tones(root / "wavs", "LJ001-0001.wav", "LJ001-0002.wav", "LJ001-0003.wav")
    (root / "metadata.csv").write_text(
        'LJ001-0001|The "first" of 2.|The "first" of two.\nLJ001-0002|Only, so\nLJ001-0003||\nLJ001-0004|Gone|Gone\n'
    )
    for source in (root, root / "metadata.csv", tmp_path):
        data = open_data(source)
        assert heard(data) == {"LJ001-0001": 'The "first" of two.', "LJ001-0002": "Only, so"}
        assert [skip.key for skip in data.skipped] == ["line 4", "LJ001-0003"]


def test_kaldi(tmp_path):
    root = tones(tmp_path / "corpus" / "wav", "a.wav", "b.wav").parent
    data = root / "data"
    data.mkdir()
    (data / "wav.scp").write_text(f"u1 wav/a.wav\nu2 {root}/wav/b.wav\nu3 sph2pipe -f wav x.sph |\nu4 wav/no.wav\n")
    (data / "text").write_text("u1 one two\nu2 three\nu3 four\nu4 five\n")
    found = open_data(data)
    assert heard(found) == {"u1": "one two", "u2": "three"}
    assert ["command" in skip.reason for skip in found.skipped] == [True, False]
    outside = tones(tmp_path / "elsewhere", "c.wav")
    (data / "wav.scp").write_text(f"u1 {outside}/c.wav\n")
    with pytest.raises(MultiflowError, match="outside"):
        open_data(data)
    assert heard(open_data(data, images=outside)) == {"u1": "one two"}
    (data / "segments").write_text("u1 r1 0 1\n")
    with pytest.raises(MultiflowError, match="extract-segments"):
        open_data(data)


def test_an_audio_folder_whose_splits_are_folders(tmp_path):
    write_tones(tmp_path / "set" / "train", {"a.wav": "one"})
    write_tones(tmp_path / "set" / "test", {"b.wav": "two"})
    assert heard(open_data(tmp_path / "set")) == {"a.wav": "one"}
    assert heard(open_data(tmp_path / "set", split="test")) == {"b.wav": "two"}
    with pytest.raises(MultiflowError, match="'val' is unknown"):
        open_data(tmp_path / "set", split="val")
    shutil.rmtree(tmp_path / "set" / "train")
    assert heard(open_data(tmp_path / "set")) == {"b.wav": "two"}
