"""Audio files of every kind become one channel of float samples at the rate that is wanted; others say why not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from multiflow.base.errors import MultiflowError
from multiflow.data.audio import Sound, check_audio, decode_sound, load_sound
from multiflow.data.dataset import BrokenItem
from tests.families.automatic.speech import RATE, tone

soundfile = pytest.importorskip("soundfile")


def written(path, wave, rate=RATE, **how):
    soundfile.write(path, wave, rate, **how)
    return path


@pytest.mark.parametrize(
    ("name", "how", "off"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 2**-15),
        ("a.wav", {"subtype": "PCM_24"}, 2**-23),
        ("a.wav", {"subtype": "PCM_32"}, 2**-23),
        ("a.wav", {"subtype": "FLOAT"}, 0.0),
        ("a.wav", {"subtype": "DOUBLE"}, 0.0),
        ("a.wav", {"subtype": "PCM_U8"}, 2**-7),
        ("a.flac", {"subtype": "PCM_16"}, 2**-15),
        ("a.flac", {"subtype": "PCM_24"}, 2**-23),
    ],
)
def test_whole_numbers_of_any_width_and_floats_are_the_same_sound(name, how, off, tmp_path):
    wave = tone()
    sound = load_sound(written(tmp_path / name, wave, **how), name)
    assert (sound.rate, sound.samples.dtype) == (RATE, np.float32)
    np.testing.assert_allclose(sound.samples, wave[:, 0], atol=off + 1e-7)


@pytest.mark.parametrize("channels", [2, 3])
def test_channels_become_their_mean(channels, tmp_path):
    wave = tone(channels=channels)
    sound = load_sound(written(tmp_path / "a.wav", wave, subtype="FLOAT"), "a.wav")
    np.testing.assert_allclose(sound.samples, wave.mean(1), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_another_rate_gives_the_same_tone(rate):
    heard = Sound(tone(0.5, rate)[:, 0], rate).at(RATE)
    assert abs(len(heard) - RATE // 2) <= 1
    middle = slice(1000, 7000)  # away from the ends, where the filter sees silence
    np.testing.assert_allclose(heard[middle], tone(0.5)[middle, 0], atol=2e-3)


def test_its_own_rate_changes_nothing():
    wave = tone()[:, 0]
    assert Sound(wave, RATE).at(RATE) is wave
    assert Sound(wave, RATE).seconds == pytest.approx(0.4)


def test_a_file_without_sound_is_broken_and_says_so(tmp_path):
    for name, wave in (("no-samples.wav", tone()[:0]),):
        with pytest.raises(BrokenItem, match="no sound"):
            load_sound(written(tmp_path / name, wave), name)
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(BrokenItem, match="empty"):
        load_sound(tmp_path / "empty.wav", "empty.wav")
    with pytest.raises(BrokenItem, match="lost"):
        load_sound(tmp_path / "lost.wav", "lost.wav")


def test_damage_is_broken_and_named(tmp_path):
    whole = written(tmp_path / "a.flac", tone()).read_bytes()
    for data in (b"RIFF" + bytes(40), whole[:20], b"not audio at all"):
        with pytest.raises(BrokenItem, match=r"a\.flac"):
            decode_sound(data, "a.flac")


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.flac", "a.ogg"])
def test_a_file_that_is_cut_off_is_broken(name, tmp_path):
    data = written(tmp_path / name, tone(1.5)).read_bytes()
    assert decode_sound(data, name).seconds == pytest.approx(1.5, abs=0.05)
    with pytest.raises(BrokenItem, match="cut off|lost sync|malformed"):
        decode_sound(data[: len(data) // 2], name)


def test_sizes_that_a_stream_leaves_open_are_no_damage(tmp_path):
    data = bytearray(written(tmp_path / "a.wav", tone()).read_bytes())
    data[4:8] = b"\xff" * 4
    assert decode_sound(bytes(data), "a.wav").seconds == pytest.approx(0.4)


def test_a_rate_that_no_speech_has_is_broken(tmp_path):
    with pytest.raises(BrokenItem, match="1 a second"):
        load_sound(written(tmp_path / "a.wav", tone(), 1), "a.wav")


def test_samples_that_are_no_numbers_are_broken(tmp_path):
    wave = tone()
    wave[3] = np.nan
    with pytest.raises(BrokenItem, match="finite"):
        load_sound(written(tmp_path / "a.wav", wave, subtype="FLOAT"), "a.wav")


def test_without_the_libraries_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MultiflowError, match=r"multiflow-pruning\[audio\]"):
        check_audio()
