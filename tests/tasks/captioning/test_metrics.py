from __future__ import annotations

import math
from subprocess import CalledProcessError

import pytest

from multiflow.base.errors import MultiflowError
from multiflow.metrics import CAPTION_METRICS, caption_scores, missing_caption_metrics
from multiflow.tasks.captioning import java
from multiflow.tasks.captioning import metrics as captions

MISSING = missing_caption_metrics()
needs_package = pytest.mark.skipif("pycocoevalcap" in MISSING.get("BLEU-1", ""), reason=MISSING.get("BLEU-1", ""))
needs_java = pytest.mark.skipif("CIDEr" in MISSING, reason=MISSING.get("CIDEr", ""))

REFERENCES = {
    "x": ["A man's dog runs on the beach.", "The dog is running (fast)!", "a brown dog\non sand"],
    7: ["Two cats — asleep — on a red couch, isn't it?"],
    "y": ["A café with 3 tables; nobody's there...", "."],
    "z": ["a train at the station", "the train stops"],
}
PREDICTIONS = {
    "z": "",
    "y": "a café with three tables",
    7: "2 cats sleeping on a couch",
    "x": "A dog runs on the beach",
}
METEOR = 29.314242463479434  # 100 x what the class of the package gives, which leaks its pipes


@needs_package
def test_values_by_hand():
    """Three words of five: precisions are 1, brevity costs exp(1 - 5/3); ROUGE-L of P = 1, R = 0.6, beta = 1.2."""
    scores = caption_scores({1: "A red star!"}, {1: ["a red star on blue"]}, tokenizer="words")
    assert list(scores) == [f"{name} (words)" for name in captions.WITHOUT_JAVA]
    assert scores["BLEU-1 (words)"] == pytest.approx(100 * math.exp(1 - 5 / 3))
    assert scores["BLEU-3 (words)"] == pytest.approx(100 * math.exp(1 - 5 / 3))
    assert scores["ROUGE-L (words)"] == pytest.approx(100 * 2.44 * 0.6 / (0.6 + 1.44))
    assert scores["CIDEr (words)"] == 0  # no word is rare in a set of one image


@needs_package
def test_cider_by_hand():
    """The first caption is its reference, and nothing in it is in the other: cosine 1 for all n, times 10."""
    references = {1: ["a red star shines"], 2: ["two blue discs roll"]}
    scores = caption_scores({1: "a red star shines", 2: "nothing"}, references, metrics=["CIDEr"], tokenizer="words")
    assert scores == {"CIDEr (words)": pytest.approx(500)}
    assert scores.each == pytest.approx((1000, 0))


@needs_package
def test_cider_of_each_image_is_in_the_order_of_the_references():
    references = {2: ["two blue discs roll"], 1: ["a red star shines"]}
    said = {1: "a red star shines", 2: "nothing"}
    assert caption_scores(said, references, tokenizer="words").each == pytest.approx((0, 1000))
    assert caption_scores(said, references, metrics=["BLEU-1"], tokenizer="words").each == ()


@needs_package
@needs_java
def test_equals_the_official_tools(capfd, monkeypatch):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")  # what starts fast
    keys = {key: [{"caption": text} for text in texts] for key, texts in REFERENCES.items()}
    targets = PTBTokenizer().tokenize(keys)
    said = PTBTokenizer().tokenize({key: [{"caption": PREDICTIONS[key]}] for key in REFERENCES})
    expected = dict(zip(captions.BLEU, Bleu(4).compute_score(targets, said, verbose=0)[0], strict=True))
    expected |= {"ROUGE-L": Rouge().compute_score(targets, said)[0], "CIDEr": Cider().compute_score(targets, said)[0]}
    monkeypatch.delenv("JAVA_TOOL_OPTIONS")  # Java says on standard error that it has seen them
    capfd.readouterr()
    scores = caption_scores(PREDICTIONS, REFERENCES)
    assert capfd.readouterr() == ("", "")  # nothing printed
    assert scores.pop("METEOR") == pytest.approx(METEOR)
    assert scores == {name: pytest.approx(100 * float(value), rel=1e-12) for name, value in expected.items()}
    assert all(type(value) is float for value in scores.values())


@needs_package
def test_spice_is_computed_where_its_parts_are(monkeypatch):
    monkeypatch.setattr(captions, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(java, "missing_spice_jars", list)
    monkeypatch.setattr(java, "spice", lambda targets, said: 0.25 if targets == {0: ["b"]} == said else 0)
    monkeypatch.setattr(java, "ptb_tokenize", list)
    assert missing_caption_metrics() == {}
    assert caption_scores({"a": "b"}, {"a": ["b"]}, metrics=["SPICE"]) == {"SPICE": 25.0}


@needs_package
def test_spice_says_what_it_lacks(monkeypatch, tmp_path):
    from pycocoevalcap.spice import get_stanford_models

    monkeypatch.setattr(captions, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(get_stanford_models, "SPICEDIR", str(tmp_path))
    missing = missing_caption_metrics()
    assert list(missing) == ["SPICE"]
    with pytest.raises(MultiflowError, match=r"SPICE cannot be computed: .*stanford-corenlp-3.6.0-models.jar"):
        caption_scores({1: "a"}, {1: ["a"]}, metrics=["SPICE"])
    (tmp_path / "lib").mkdir()
    for jar in java.missing_spice_jars():
        jar.touch()
    assert missing_caption_metrics() == {}


@needs_package
def test_spice_that_fails_is_named(monkeypatch):
    from pycocoevalcap.spice import spice

    class Fails:
        def compute_score(self, targets, said):
            raise CalledProcessError(1, ["java"])

    monkeypatch.setattr(spice, "Spice", Fails)
    with pytest.raises(MultiflowError, match="SPICE failed .*exit status 1"):
        java.spice({0: ["a"]}, {0: ["a"]})


@needs_package
def test_without_java_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(captions, "which", lambda name: None)
    with pytest.raises(MultiflowError, match=r"needs Java .* install a Java runtime .* tokenizer='words'"):
        caption_scores({1: "a"}, {1: ["a"]})
    assert list(missing_caption_metrics()) == list(CAPTION_METRICS)
    assert list(missing_caption_metrics("words")) == ["METEOR", "SPICE"]
    assert caption_scores({1: "a"}, {1: ["a"]}, metrics=["BLEU-1"], tokenizer="words")["BLEU-1 (words)"] > 99.9


def test_without_the_package_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(captions, "find_spec", lambda name: None)
    with pytest.raises(MultiflowError, match=r"pip install -e '\.\[eval\]'"):
        caption_scores({1: "a"}, {1: ["a"]}, tokenizer="words")


@needs_package
@pytest.mark.parametrize(
    ("predictions", "references", "options", "said"),
    [
        ({}, {}, {}, "no references"),
        ({1: "a"}, {1: ["a"], 2: ["b"], 3: ["c"]}, {}, "2 images have no prediction, such as 2, 3"),
        ({1: "a", "2": "b"}, {1: ["a"]}, {}, "1 images have no references, such as '2'"),
        ({1: ["a"]}, {1: ["a"]}, {}, "image 1 has the prediction ['a']"),
        ({1: "a"}, {1: "a"}, {}, "image 1 has the references 'a'"),
        ({1: "a"}, {1: []}, {}, "image 1 has the references []"),
        ({1: "a"}, {1: ["a", " "]}, {}, "none blank"),
        ({1: "a"}, {1: ["a"]}, {"metrics": ["cider"]}, "unknown caption metric 'cider'"),
        ({1: "a"}, {1: ["a"]}, {"metrics": "CIDEr"}, "metrics=['CIDEr']"),
        ({1: "a"}, {1: ["a"]}, {"metrics": []}, "no metrics"),
        ({1: "a"}, {1: ["a"]}, {"metrics": ["METEOR"]}, "METEOR cannot be computed: it takes the official words only"),
        ({1: "a"}, {1: ["a"]}, {"tokenizer": "word"}, "unknown tokenizer 'word'"),
    ],
)
def test_bad_input_is_named(predictions, references, options, said):
    with pytest.raises(MultiflowError) as error:
        caption_scores(predictions, references, **{"tokenizer": "words", **options})
    assert said in str(error.value)
