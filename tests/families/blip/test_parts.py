from __future__ import annotations

from torch import nn

from multiflow.families.blip import parts
from tests.families.blip.sizes import small_config, small_model


def test_all_but_self_attention_is_shared():
    model = small_model()
    encoder = dict(model.text_encoder.named_parameters())
    decoder = dict(model.text_decoder.bert.named_parameters())
    assert list(encoder) == list(decoder)
    for name, parameter in encoder.items():
        assert (decoder[name] is parameter) == (".attention." not in name), name
    assert model.text_decoder.cls.predictions.decoder.weight is encoder["embeddings.word_embeddings.weight"]
    assert model.text_decoder.cls.predictions.decoder.bias is model.text_decoder.cls.predictions.bias


def test_the_parts_have_the_sizes_of_the_config():
    config = small_config(text={**small_config().text, "dropout": 0.25})
    vision, text = parts.vision_model(config).config, parts.text_encoder(config).config
    assert (vision.image_size, vision.hidden_size, vision.intermediate_size, vision.layer_norm_eps) == (
        24,
        24,
        40,
        1e-6,
    )
    assert (text.hidden_size, text.encoder_hidden_size, text.num_hidden_layers, text.vocab_size) == (32, 24, 2, 50)
    assert (text.hidden_dropout_prob, text.attention_probs_dropout_prob, text.label_smoothing) == (0.25, 0.25, 0.1)


def test_names_of_what_is_shared_lead_to_the_first_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    model["c"].weight = model["b"].weight = model["a"].weight
    assert parts.shared_names(model) == {"b.weight": "a.weight", "c.weight": "a.weight"}
