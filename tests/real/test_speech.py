"""Speech out of packages becomes data folders, and a transcript's figure is the share of words that are right."""

from __future__ import annotations

import csv
import gzip
from collections import Counter

import pytest
import torch

from multiflow.base.errors import MultiflowError
from multiflow.data import open_data

soundfile = pytest.importorskip("soundfile")
from benchmarks.real import speech  # noqa: E402
from benchmarks.real.whisper_world import Heard, measured, shifted  # noqa: E402
from multiflow.tasks.transcription.metric import normalizer  # noqa: E402
from tests.families.automatic.speech import RATE, tone  # noqa: E402

SOUNDS = "asterisk-core-sounds-en-wav/files/usr/share/asterisk/sounds/en_US_f_Allison"
TEXTS = "asterisk-core-sounds-en/files/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
SPHINX = "pocketsphinx-testdata/files/usr/share/pocketsphinx/test/data"
STAMPS = "tuxpaint-stamps-default/files/usr/share/tuxpaint/stamps/animals"


def sound(path, seconds=0.6, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate), rate)


@pytest.fixture
def cache(tmp_path):
    packages = tmp_path / "packages"
    lines = ["; Core Sounds", "", "short: Thank you.", "beep: [this is a simple beep tone]", "lost: There is no file."]
    for number in range(7):
        lines.append(f"dir/p{number}: This is prompt number {number}: listen.")
        sound(packages / SOUNDS / "dir" / f"p{number}.wav")
    lines += ["brief: Far too short a clip.", "long: A clip of ten seconds."]
    sound(packages / SOUNDS / "brief.wav", 0.3)
    sound(packages / SOUNDS / "long.wav", 9.5)
    (packages / TEXTS).parent.mkdir(parents=True)
    (packages / TEXTS).write_bytes(gzip.compress("\n".join(lines).encode()))
    for folder, name, text in (
        ("librivox", "transcription", "he was young"),
        ("cards", "cards.transcription", "ten of clubs "),
    ):
        sound(packages / SPHINX / folder / "a-1.wav", rate=RATE)
        (packages / SPHINX / folder / name).write_text(f"<s> {text} </s> (a-1)\n<s> not there </s> (a-2)\n")
    for name, text in (("frog", "A frog.\nfr.utf8=Une grenouille\n"), ("silent", "An owl.\n"), ("nameless", "")):
        (packages / STAMPS).mkdir(parents=True, exist_ok=True)
        (packages / STAMPS / f"{name}.txt").write_text(text)
    for name in ("frog", "nameless", "textless"):
        sound(packages / STAMPS / f"{name}_desc.ogg", rate=44100)
    return tmp_path


def said(folder):
    return [clip.text for clip in open_data(folder)]


def test_prompts_are_split_in_two_and_none_is_in_both(cache):
    parts = [said(speech.speech_folder(cache, f"prompts-{name}")) for name in ("calibration", "test")]
    assert sorted(map(len, parts)) == [3, 4]
    assert Counter([*parts[0], *parts[1]]) == Counter(f"This is prompt number {n}: listen." for n in range(7))


def test_clips_of_other_speakers_come_with_their_words(cache):
    assert said(speech.speech_folder(cache, "readers")) == ["he was young", "ten of clubs"]


def test_stamps_say_what_is_spoken_without_the_article(cache):
    assert said(speech.speech_folder(cache, "stamps")) == ["Frog."]


def test_a_folder_is_written_once_and_whole(cache):
    place = speech.speech_folder(cache, "readers")
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert speech.speech_folder(cache, "readers") == place
    assert before == {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    with (place / "metadata.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["file_name", "transcription"]


def test_packages_that_are_missing_or_empty_are_said(tmp_path, cache):
    with pytest.raises(MultiflowError, match="pocketsphinx-testdata"):
        speech.speech_folder(tmp_path / "nothing", "readers")
    for path in (cache / "packages" / STAMPS).glob("*.ogg"):
        path.unlink()
    with pytest.raises(MultiflowError, match="stamps"):
        speech.speech_folder(cache, "stamps")


def test_the_figure_is_the_share_of_words_that_are_right_and_no_clip_is_below_nothing():
    heard = Heard(torch.zeros(3, 1, 1), torch.zeros(3, 1), ("one two three four", "yes", "a b c"))
    items = measured(["one two three four", "no no no no no", "a b"], 0.5, heard, normalizer("none", ()))
    assert sum(items.each) / 3 == pytest.approx(100 * (4 + 0 + 2) / 8)
    assert min(items.each) == 0
    assert items.more["WER"] == pytest.approx(100 * (0 + 5 + 1) / 8)
    assert items.more["loss"] == 0.5


def test_the_decoder_reads_what_stands_before_each_label():
    labels = torch.tensor([[-100, 11, 12, 50256], [-100, 13, 50256, -100]])
    assert shifted(labels).tolist() == [[50257, 50362, 11, 12], [50257, 50362, 13, 50256]]
