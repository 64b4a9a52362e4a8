"""Speech with transcripts on disk: tables, lists and texts beside, and what is left out of them."""

from __future__ import annotations

import json

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import open_data
from tests.families.automatic.speech import write_tones

pytest.importorskip("soundfile")
SAID = {"a.wav": "hello there", "b.wav": "good, bye", "c.wav": "yes"}


def heard(data):
    return {clip.key: clip.text for clip in data}


@pytest.fixture
def tones(tmp_path):
    write_tones(tmp_path / "data", SAID)
    (tmp_path / "data" / "metadata.csv").unlink()
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", 'file_name,transcription\na.wav,hello there\nb.wav,"good, bye"\nc.wav,yes\n'),
        ("metadata.csv", "file_name,transcription\na.wav,hello there\nb.wav,good, bye\nc.wav,yes\n"),
        ("clips.tsv", "path\tsentence\na.wav\thello there\nb.wav\tgood, bye\nc.wav\tyes\n"),
        ("said.csv", 'id,audio,text\n1,a.wav,hello there\n2,b.wav,"good, bye"\n3,c.wav,yes\n'),
        ("bare.tsv", "a.wav\thello there\nb.wav\tgood, bye\nc.wav\tyes\n"),
        ("metadata.jsonl", "\n".join(json.dumps({"file_name": k, "transcription": v}) for k, v in SAID.items())),
        ("all.json", json.dumps([{"audio": k, "text": v, "speaker": 3} for k, v in SAID.items()])),
    ],
)
def test_a_table_or_list_of_clips_is_speech(name, text, tones):
    (tones / name).write_text(text)
    for source in (tones, tones / name):
        data = open_data(source)
        assert data.kind == "clips"
        assert heard(data) == SAID


def test_a_text_beside_each_sound_is_its_transcript(tones):
    for name, text in SAID.items():
        (tones / name.replace(".wav", ".txt")).write_text(text + "\n")
    assert heard(open_data(tones)) == SAID


def test_a_clip_without_transcript_is_left_out_with_a_reason(tones):
    (tones / "a.txt").write_text("hello there")
    (tones / "b.txt").write_text("  \n")
    data = open_data(tones)
    assert heard(data) == {"a.wav": "hello there"}
    assert {skip.key: "transcript" in skip.reason for skip in data.skipped} == {"b.wav": True, "c.wav": True}


def test_rows_that_lack_something_are_left_out(tones):
    (tones / "metadata.csv").write_text(
        "file_name,transcription,speaker\na.wav,hello there,1\nb.wav,,1\n,yes,1\nc.wav\n"
    )
    data = open_data(tones)
    assert heard(data) == {"a.wav": "hello there"}
    assert [skip.key for skip in data.skipped] == ["line 4", "line 5", "b.wav"]


def test_entries_of_a_list_that_lack_something_are_left_out(tones):
    rows = [{"audio": "a.wav", "text": "hello there"}, {"text": "x"}, {"audio": "c.wav", "text": 3}, {"audio": "b.wav"}]
    (tones / "all.json").write_text(json.dumps(rows))
    data = open_data(tones)
    assert heard(data) == {"a.wav": "hello there"}
    assert len(data.skipped) == 3


def test_the_user_names_the_columns(tones):
    (tones / "t.csv").write_text("take,where,spoken\n1,a.wav,hello there\n2,c.wav,yes\n")
    data = open_data(tones / "t.csv", image_column="where", text_column="spoken")
    assert heard(data) == {"a.wav": "hello there", "c.wav": "yes"}
    with pytest.raises(MultiflowError, match="where"):
        open_data(tones / "t.csv", text_column="spoken")
    with pytest.raises(MultiflowError, match="text_column"):
        open_data(tones / "t.csv", image_column="where")


def test_no_transcript_at_all_is_an_error(tones):
    (tones / "metadata.csv").write_text("file_name,transcription\na.wav,\nb.wav,\n")
    with pytest.raises(MultiflowError, match="transcripts are missing"):
        open_data(tones)


def test_a_sound_outside_of_its_folder_is_refused(tones):
    (tones / "metadata.csv").write_text("file_name,transcription\n../../up.wav,hello\n")
    with pytest.raises(MultiflowError, match="outside"):
        open_data(tones)


def test_splits_are_files_of_their_own(tones):
    (tones / "train.csv").write_text("audio,text\na.wav,hello there\n")
    (tones / "test.csv").write_text("audio,text\nc.wav,yes\n")
    assert heard(open_data(tones, split="test")) == {"c.wav": "yes"}
    assert heard(open_data(tones)) == {"a.wav": "hello there"}


def test_sources_join_and_speech_joins_nothing_else(tones, tmp_path, worlds_pairs):
    (tones / "metadata.csv").write_text("file_name,transcription\na.wav,hello there\n")
    other = write_tones(tmp_path / "other", {"z.flac": "zed"})
    assert heard(open_data(f"{tones}+{other}")) == {"a.wav": "hello there", "z.flac": "zed"}
    with pytest.raises(MultiflowError, match="cannot be joined"):
        open_data(f"{tones}+{worlds_pairs}")


@pytest.fixture
def worlds_pairs(tmp_path):
    from tests.data.worlds import write_images

    write_images(tmp_path / "pictures", ["1.png"])
    (tmp_path / "pictures" / "captions.txt").write_text("1.png\ta red square\n")
    return tmp_path / "pictures"
