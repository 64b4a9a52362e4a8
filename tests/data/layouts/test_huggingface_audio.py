"""Speech in Hugging Face data sets, decoded by our own reader: neither torchcodec nor librosa is asked."""

from __future__ import annotations

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data import BrokenItem, open_data
from tests.families.automatic.speech import write_tones

pytest.importorskip("soundfile")
datasets = pytest.importorskip("datasets")
SAID = {"a.wav": "hello there", "b.flac": "good bye", "c.wav": ""}


@pytest.fixture
def cells(tmp_path):
    folder = write_tones(tmp_path / "sounds", SAID)
    return [{"bytes": (folder / name).read_bytes(), "path": name} for name in SAID]


def speech(cells, **more):
    features = {"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    features |= {name: datasets.Value("string") for name in more}
    table = datasets.Dataset.from_dict({"audio": cells, **more}, features=datasets.Features(features))
    return table.cast_column("audio", datasets.Audio(sampling_rate=16000))


def read(data):
    found = {}
    for at in range(len(data)):
        try:
            found[at] = (data[at].text, data[at].sound.rate)
        except BrokenItem as error:
            found[at] = error.skip.reason
    return found


def test_a_saved_table_and_parquet_files(tmp_path, cells):
    table = speech(cells, sentence=list(SAID.values()), path=list(SAID))
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "set" / "test-00000-of-00001.parquet")
    for data in (open_data(tmp_path / "saved"), open_data(tmp_path / "set", split="test")):
        assert data.kind == "clips"
        assert read(data) == {0: ("hello there", 16000), 1: ("good bye", 16000), 2: "no transcript"}
        assert data.known(1).texts == ("good bye",)
        assert data.known(2) is None


def test_the_usual_column_of_transcripts_is_taken_first(tmp_path, cells):
    table = speech(cells, raw_transcription=["A", "B", "C"], transcription=["a", "b", "c"], gender=["x", "y", "z"])
    table.save_to_disk(tmp_path / "saved")
    assert [clip.text for clip in open_data(tmp_path / "saved")] == ["a", "b", "c"]
    assert [clip.text for clip in open_data(f"hf:{tmp_path / 'saved'},text=raw_transcription")] == ["A", "B", "C"]
    with pytest.raises(MultiflowError, match="raw_transcriptoin"):
        open_data(tmp_path / "saved", text_column="raw_transcriptoin")


def test_a_sound_that_is_damaged_or_missing_costs_itself(tmp_path, cells):
    (tmp_path / "lone.wav").write_bytes(cells[1]["bytes"])
    given = [{"bytes": b"RIFFnothing", "path": "a.wav"}, {"bytes": None, "path": str(tmp_path / "lone.wav")}, None]
    speech(given, text=["one", "two", "three"]).save_to_disk(tmp_path / "saved")
    found = read(open_data(tmp_path / "saved"))
    assert "not an audio file" in found[0]
    assert found[1] == ("two", 16000)
    assert found[2] == "it has no sound"


def test_bytes_without_a_type_are_sounds_where_their_column_says_so(tmp_path, cells):
    table = datasets.Dataset.from_dict({"audio": [cell["bytes"] for cell in cells], "text": ["a", "b", "c"]})
    table.save_to_disk(tmp_path / "saved")
    assert [clip.sound.rate for clip in open_data(tmp_path / "saved")] == [16000] * 3
    lone = datasets.Dataset.from_dict({"audio": [cell["bytes"] for cell in cells], "kind": [1, 2, 3]})
    lone.save_to_disk(tmp_path / "lone")
    with pytest.raises(MultiflowError, match=r"no plain text column.*hf:.*text=COLUMN"):
        open_data(tmp_path / "lone")
