"""A CTranslate2 file becomes an ordinary Whisper: the same weights, the settings of greedy decoding, the cut window."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
import transformers

from benchmarks.real.ct2 import TYPES, read_model
from benchmarks.real.whisper import FIRST_TIME, START, convert
from multiflow.base.errors import MultiflowError

WORDS = FIRST_TIME + 5
CONFIG = {"suppress_ids": [1, 2, 7], "suppress_ids_begin": [220, 50256]}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=WORDS, num_mel_bins=4, d_model=64, encoder_layers=1, decoder_layers=2, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, max_source_positions=150,
        max_target_positions=12, pad_token_id=50256, bos_token_id=50256, eos_token_id=50256,
        decoder_start_token_id=START, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


def variables_of(model):
    """What CTranslate2's converter makes of a model, by its published names."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    found = {}

    def linear(there, *here):
        weights = [state[f"{name}.weight"] for name in here]
        biases = [state.get(f"{name}.bias", np.zeros(len(state[f"{name}.weight"]), np.float32)) for name in here]
        found[f"{there}/weight"], found[f"{there}/bias"] = np.concatenate(weights), np.concatenate(biases)

    def norm(there, here):
        found[f"{there}/gamma"], found[f"{there}/beta"] = state[f"{here}.weight"], state[f"{here}.bias"]

    for side, layers in (("encoder", 1), ("decoder", 2)):
        found[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for n in range(layers):
            there, here = f"{side}/layer_{n}", f"model.{side}.layers.{n}"
            linear(f"{there}/self_attention/linear_0", *(f"{here}.self_attn.{x}_proj" for x in "qkv"))
            linear(f"{there}/self_attention/linear_1", f"{here}.self_attn.out_proj")
            norm(f"{there}/self_attention/layer_norm", f"{here}.self_attn_layer_norm")
            linear(f"{there}/ffn/linear_0", f"{here}.fc1")
            linear(f"{there}/ffn/linear_1", f"{here}.fc2")
            norm(f"{there}/ffn/layer_norm", f"{here}.final_layer_norm")
            if side == "decoder":
                linear(f"{there}/attention/linear_0", f"{here}.encoder_attn.q_proj")
                linear(f"{there}/attention/linear_1", f"{here}.encoder_attn.k_proj", f"{here}.encoder_attn.v_proj")
                linear(f"{there}/attention/linear_2", f"{here}.encoder_attn.out_proj")
                norm(f"{there}/attention/layer_norm", f"{here}.encoder_attn_layer_norm")
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            found[f"encoder/{conv}/{part}"] = state[f"model.encoder.{conv}.{part}"]
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return found


def text(value):
    data = value.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def write(path, variables, version=6, aliases=()):
    parts = [struct.pack("<I", version), *([text("WhisperSpec"), struct.pack("<I", 3)] if version >= 2 else [])]
    parts.append(struct.pack("<I", len(variables)))
    for name, value in variables.items():
        data = np.ascontiguousarray(value).tobytes()
        parts += [text(name), struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)]
        kind = [np.dtype(of) for of in TYPES].index(value.dtype)
        if version >= 4:
            parts.append(struct.pack("<BI", kind, len(data)))
        else:
            parts.append(struct.pack("<BI", value.itemsize, value.size))
        parts.append(data)
    if version >= 3:
        parts.append(struct.pack("<I", len(aliases)))
        parts += [text(name) for pair in aliases for name in pair]
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_every_version_of_the_file_is_read(version, tmp_path):
    rng = np.random.default_rng(0)
    there = {
        "a/weight": rng.normal(size=(2, 3)).astype(np.float32),
        "b": np.array([1, -2], np.int16),
        "c": np.array(4, np.int8),
    }
    aliases = [("d", "b")] if version >= 3 else []
    found = read_model(write(tmp_path / "model.bin", there, version, aliases))
    assert found.keys() == {*there, *(name for name, _ in aliases)}
    for name, value in there.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_half_precision_is_read(tmp_path):
    value = np.array([[0.5, -3.25]], np.float16)
    np.testing.assert_array_equal(read_model(write(tmp_path / "m.bin", {"x": value}))["x"], value)


def test_a_damaged_file_is_a_sentence(tmp_path):
    whole = write(tmp_path / "m.bin", {"x": np.zeros((4, 4), np.float32)}).read_bytes()
    for data in (b"", whole[:-5], whole[:30], struct.pack("<I", 99) + whole[4:], bytes(64)):
        (tmp_path / "m.bin").write_bytes(data)
        with pytest.raises(MultiflowError, match=r"m\.bin"):
            read_model(tmp_path / "m.bin")
    with pytest.raises(MultiflowError, match=r"lost\.bin"):
        read_model(tmp_path / "lost.bin")


def test_the_converted_model_is_the_model(model, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    made = convert(variables_of(model), tmp_path, seconds=3)
    features, ids = torch.randn(2, 4, 300), torch.tensor([[START, 5, 6], [START, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(
            made(input_features=features, decoder_input_ids=ids).logits,
            model(input_features=features, decoder_input_ids=ids).logits,
        )


def test_a_cut_window_keeps_the_first_positions(model, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    made = convert(variables_of(model), tmp_path, seconds=1)
    assert made.config.max_source_positions == 50
    torch.testing.assert_close(
        made.model.encoder.embed_positions.weight, model.model.encoder.embed_positions.weight[:50]
    )


def test_greedy_decoding_writes_neither_times_nor_what_is_suppressed(model, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    made = convert(variables_of(model), tmp_path, seconds=1)
    written = made.generate(input_features=torch.randn(3, 4, 100), max_new_tokens=6)[:, 2:]
    assert not set(written.flatten().tolist()) & {1, 2, 7, *range(FIRST_TIME, WORDS)}
    assert not made.generation_config.do_sample


def test_a_model_of_other_parts_is_refused(model, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    lacking = variables_of(model)
    del lacking["encoder/conv2/bias"]
    with pytest.raises(MultiflowError, match="conv2/bias"):
        convert(lacking, tmp_path)
    other = variables_of(model) | {"encoder/conv2/bias": np.zeros(3, np.float32)}
    with pytest.raises(MultiflowError, match="conv2"):
        convert(other, tmp_path)
    biased = variables_of(model)
    biased["encoder/layer_0/self_attention/linear_0/bias"][64] = 1.0  # of the keys
    with pytest.raises(MultiflowError, match="k_proj"):
        convert(biased, tmp_path)
