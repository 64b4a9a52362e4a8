"""Models that listen: their groups and streams, batches of speech, what padding counts, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers

import multiflow as mf
from multiflow.base.errors import MultiflowError
from multiflow.families.automatic.listening import hears
from tests.families.automatic import speech
from tests.families.automatic.contract import check_pruning
from tests.families.automatic.speech import RATE, SIZES, WAVES, tone, write_tones

soundfile = pytest.importorskip("soundfile")
SAID = {"a.wav": "abc", "b.wav": "hello there", "c.flac": "yes", "d.wav": "no"}
pytestmark = pytest.mark.filterwarnings("ignore:.*are no linear layers and stay dense")
KINDS = {
    "whisper": {"audio": 12, "text": 12, "fusion": 8},
    "speech_to_text": {"audio": 12, "text": 12, "fusion": 8},
    "moonshine": {"audio": 12, "text": 12, "fusion": 8},
    "ctc": {"audio": 13},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            torch.manual_seed(0)
            made[kind] = getattr(speech, kind)(tmp_path_factory.mktemp(kind) / kind)
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones"), SAID)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_groups_are_those_of_what_hears_and_what_writes(kind, folder):
    layout = mf.adapter_for(mf.load_model(folder(kind))).layout(mf.load_model(folder(kind)))
    assert {group: len(layers) for group, layers in layout.groups.items()} == KINDS[kind]
    for layer in layout.layers:
        cross = "encoder_attn" in layer.name or (
            kind == "moonshine" and "decoder" in layer.name and "encoder" in layer.name
        )
        wanted = "source" if cross and layer.name.endswith(("k_proj", "v_proj")) else "decoder"
        assert layer.stream == ("audio" if layer.group == "audio" else wanted), layer.name


def test_speecht5_and_pairs_of_encoder_and_decoder_have_the_same_groups():
    t5 = transformers.SpeechT5ForSpeechToText(
        transformers.SpeechT5Config(
            vocab_size=60, hidden_size=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
            **{name: value for name, value in WAVES.items() if name != "hidden_size"},
        )
    )  # fmt: skip
    ears = transformers.Wav2Vec2Config(**WAVES, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    text = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    config = transformers.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(ears, text)
    for model in (t5, transformers.SpeechEncoderDecoderModel(config)):
        groups = mf.adapter_for(model).layout(model).groups
        assert {group: len(layers) for group, layers in groups.items()} == {"audio": 13, "text": 12, "fusion": 8}


def test_batches_hold_sounds_and_their_transcripts(kind, folder, tones):
    model = mf.load_model(folder(kind))
    batches = mf.calibration_batches(model, str(tones), batch_size=4)
    (batch,) = batches
    assert (batches.seen, batches.skipped.count) == (4, 0)
    assert torch.isfinite(model(**batch).loss)
    heard = batch.get("input_features", batch.get("input_values"))
    assert len(heard) == 4
    processor = transformers.AutoTokenizer.from_pretrained(folder(kind))
    said = [processor.decode(row[row != -100], skip_special_tokens=True).strip() for row in batch["labels"]]
    assert sorted(said) == sorted(SAID.values())
    if kind == "whisper":
        assert "attention_mask" not in batch
        assert (batch["labels"][:, 0] != model.config.decoder_start_token_id).all()
    else:
        assert batch["attention_mask"].shape[:2] == heard.shape[:2]


def test_they_are_pruned_saved_and_trained(kind, folder, tones, tmp_path):
    model = mf.load_model(folder(kind))
    batches = [mf.calibration_batches(model, str(tones), batch_size=size) for size in (4, 1)]
    check_pruning(model, mf.adapter_for(model), [batch for of in batches for batch in of][:2], tmp_path)


@pytest.mark.parametrize("kind", ["speech_to_text", "ctc", "moonshine"])
def test_statistics_leave_the_padding_of_sounds_out(kind, folder, tones):
    model = mf.load_model(folder(kind)).eval()
    (batch,) = mf.calibration_batches(model, str(tones), batch_size=4)
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) == 4
    if kind == "moonshine":
        whole = batch["attention_mask"][:, ::384]
        kept = model.model.encoder(batch["input_values"]).last_hidden_state.shape[1]
        expected = int(whole[:, :kept].sum())
    else:
        module = model if kind == "ctc" else model.model.encoder
        expected = int(module._get_feat_extract_output_lengths(lengths).sum())
    counts = mf.calibrate(model, [batch], statistics=["input_norm"]).counts["input_norm"]
    layers = mf.adapter_for(model).layout(model).layers
    heard = [layer.name for layer in layers if layer.stream in ("audio", "source")]
    assert {counts[name] for name in heard} == {expected}
    read = (batch["labels"] != -100).sum(1) + 1  # the token that begins, and each of the text but for a last one
    written = {counts[layer.name] for layer in layers if layer.stream == "decoder"}
    assert written in ({int(read.clip(max=batch["labels"].shape[1]).sum())}, set())


def test_silence_behind_the_speech_counts_for_whisper(folder, tones):
    model = mf.load_model(folder("whisper"))
    (batch,) = mf.calibration_batches(model, str(tones), batch_size=4)
    counts = mf.calibrate(model, [batch], statistics=["input_norm"]).counts["input_norm"]
    assert counts["model.encoder.layers.0.fc1"] == 4 * model.config.max_source_positions


def test_sounds_of_any_kind_make_the_same_batch(folder, tmp_path):
    model = mf.load_model(folder("ctc"))
    made = []
    for name, rate, channels, subtype in (
        ("a.wav", RATE, 1, "FLOAT"),
        ("b.wav", 48000, 2, "PCM_24"),
        ("c.flac", 8000, 1, "PCM_16"),
    ):
        place = tmp_path / name
        place.mkdir()
        wave = tone(0.5, rate).repeat(channels, 1)
        soundfile.write(place / name, wave, rate, subtype=subtype)
        (place / "metadata.csv").write_text(f"file_name,text\n{name},abc\n")
        (batch,) = mf.calibration_batches(model, str(place))
        made.append(batch["input_values"][0, 500:7000])
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], atol=2e-2, rtol=0)


def test_what_cannot_be_heard_is_skipped_with_its_reason(folder, tmp_path):
    write_tones(tmp_path, SAID)
    soundfile.write(tmp_path / "a.wav", tone()[:0], RATE)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    (tmp_path / "d.wav").unlink()
    model = mf.load_model(folder("ctc"))
    batches = mf.calibration_batches(model, str(tmp_path), batch_size=4)
    with pytest.warns(UserWarning, match="3 of 4 items skipped"):
        (batch,) = batches
    assert len(batch["labels"]) == 1
    reasons = {skip.key: skip.reason for skip in batches.skipped.skips}
    assert reasons.keys() == {"a.wav", "b.wav", "d.wav"}
    assert "no sound" in reasons["a.wav"]


def test_a_sound_longer_than_whisper_listens_is_skipped(folder, tmp_path):
    write_tones(tmp_path, SAID)
    soundfile.write(tmp_path / "b.wav", tone(2), RATE)
    batches = mf.calibration_batches(mf.load_model(folder("whisper")), str(tmp_path))
    with pytest.warns(UserWarning, match=r"b\.wav \(it lasts 2\.0 seconds"):
        (batch,) = batches
    assert len(batch["labels"]) == 3


@pytest.mark.parametrize("name", ["sampling_rate", "n_samples"])
@pytest.mark.parametrize("said", [math.inf, math.nan, 0, -1, "16000", True, [1], 10**40])
def test_a_processor_that_says_no_number_is_a_sentence(name, said, folder, tmp_path):
    write_tones(tmp_path, SAID)
    model = mf.load_model(folder("whisper"))
    processor = transformers.AutoProcessor.from_pretrained(folder("whisper"))
    setattr(processor.feature_extractor, name, said)
    with pytest.raises(mf.MultiflowError, match=f"says {name} .*; expected 1 to"):
        list(mf.calibration_batches(model, str(tmp_path), processor=processor))


def test_silence_of_which_a_model_makes_no_features_is_skipped(folder, tmp_path):
    write_tones(tmp_path, SAID)
    soundfile.write(tmp_path / "b.wav", np.zeros(RATE // 2, np.float32), RATE)
    for kind, left in (("ctc", 4), ("whisper", 4)):
        (batch,) = mf.calibration_batches(mf.load_model(folder(kind)), str(tmp_path))
        assert len(batch["labels"]) == left
        assert all(value.isfinite().all() for value in batch.values())


def test_capitals_are_written_where_the_letters_are_capitals(folder, tmp_path):
    from tests.families.automatic.speech import in_parts

    place = folder("ctc")
    letters = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **{c: 5 + i for i, c in enumerate("ABEHLORTY'")}}
    (tmp_path / "vocab.json").write_text(__import__("json").dumps(letters))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    model = in_parts(tmp_path / "model", mf.load_model(place), extractor, tokenizer)
    write_tones(tmp_path / "tones", {"a.wav": "hello there"})
    (batch,) = mf.calibration_batches(mf.load_model(model), str(tmp_path / "tones"))
    assert tokenizer.decode(batch["labels"][0], group_tokens=False) == "HELLO THERE"


def test_pictures_and_prompts_are_refused(folder, tones, tmp_path):
    from tests.data.worlds import write_images

    model = mf.load_model(folder("whisper"))
    write_images(tmp_path, ["1.png"])
    (tmp_path / "captions.txt").write_text("1.png\ta red square\n")
    with pytest.raises(MultiflowError, match="speech with transcripts"):
        mf.calibration_batches(model, str(tmp_path))
    with pytest.raises(MultiflowError, match="prompt"):
        mf.calibration_batches(model, str(tones), prompt="what is said?")
    with pytest.raises(MultiflowError, match="augment"):
        mf.calibration_batches(model, str(tones), augment="paper")


def test_models_of_pictures_refuse_speech(vlm, tones):
    for kind in ("clip", "llava"):
        with pytest.raises(MultiflowError, match="clips"):
            list(mf.calibration_batches(mf.load_model(vlm(kind)), str(tones)))


def test_a_folder_without_feature_extractor_says_what_is_missing(folder, tones, tmp_path):
    import shutil

    place = shutil.copytree(folder("ctc"), tmp_path / "model")
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(MultiflowError, match="feature extractor"):
        mf.calibration_batches(mf.load_model(place), str(tones))


def test_only_what_writes_what_it_hears_is_a_listener(folder, vlm):
    assert hears(mf.load_model(folder("whisper")))
    assert not hears(mf.load_model(vlm("clip")))
    plain = transformers.Wav2Vec2ForSequenceClassification(
        transformers.Wav2Vec2Config(**WAVES, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    assert not hears(plain)
    assert not hears(
        transformers.WhisperForAudioClassification(
            transformers.WhisperConfig(**SIZES, vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        )
    )


def test_examples_to_time_them_need_no_data(kind, folder):
    from multiflow.formats.examples import example_batch

    model = mf.load_model(folder(kind)).eval()
    batch = example_batch(model, 2)
    with torch.no_grad():
        assert len(model(**batch).logits) == 2
