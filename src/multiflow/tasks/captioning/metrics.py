"""Caption metrics: BLEU-1 to 4, METEOR, ROUGE-L, CIDEr and SPICE, as the COCO caption evaluation computes them.

BLEU (Papineni et al. 2002), METEOR 1.5 (Denkowski and Lavie 2014), ROUGE-L (Lin 2004), CIDEr (arXiv 1411.5726), SPICE
(arXiv 1607.08822); COCO's evaluation: arXiv 1504.00325. The package ``pycocoevalcap`` computes them. All start from the
words of Stanford's PTB tokenizer, in lower case and without punctuation: a Java program, as METEOR and SPICE are.

CIDEr weighs words by how rare they are among the references given: it depends on the whole set, and is 0 for one image.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from shutil import which
from typing import Literal

from multiflow.base.errors import MultiflowError, unknown
from multiflow.tasks.captioning import java
from multiflow.tasks.task import Figures

Tokenizer = Literal["ptb", "words"]
Tokens = dict[int, list[str]]
"""Number of an image -> its tokenised captions, each a text with one space between words."""

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
CAPTION_METRICS = (*BLEU, "METEOR", "ROUGE-L", "CIDEr", "SPICE")
WITHOUT_JAVA = (*BLEU, "ROUGE-L", "CIDEr")  # but for their tokenizer
PARTS_OF_WORDS = re.compile(r"\w+(?:'\w+)*")


def caption_scores(
    predictions: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    *,
    metrics: Sequence[str] | None = None,
    tokenizer: Tokenizer = "ptb",
) -> Figures:
    """Score one caption per image against the captions people wrote: metric -> value in percent.

    The values are 100 times those of the official tool, as papers print them; CIDEr goes up to 1000.

    Args:
        predictions: image id -> caption; an empty one counts as such.
        references: the same ids -> at least one caption each.
        metrics: names from `CAPTION_METRICS`; None = all but those in `missing_caption_metrics`.
        tokenizer: ``ptb`` = the official one; ``words`` = runs of letters, digits and inner apostrophes in lower case.
            The latter needs no Java, its values are not comparable with published ones, and its names say so:
            ``CIDEr (words)``.

    Returns:
        The metrics in the order asked for; ``each`` is the CIDEr of each image, in the order of the references, and
        empty where CIDEr was not asked for.

    Raises:
        MultiflowError: the ids differ, a reference is blank, a metric is unknown or cannot be computed, or Java fails.

    >>> caption_scores({7: "a red star"}, {7: ["A red star."]}, metrics=["BLEU-1", "ROUGE-L"])  # doctest: +SKIP
    {'BLEU-1': 100.0, 'ROUGE-L': 100.0}
    """
    _check(predictions, references)
    chosen = _choose(metrics, tokenizer)
    said = [predictions[key] for key in references]
    given = [text for texts in references.values() for text in texts]
    split = _in_words if tokenizer == "words" else java.ptb_tokenize
    words = iter(split([*said, *given]))
    hypotheses: Tokens = {i: [next(words)] for i in range(len(said))}
    targets: Tokens = {i: list(islice(words, len(texts))) for i, texts in enumerate(references.values())}
    scores, ciders = _score(chosen, targets, hypotheses)
    mark = " (words)" if tokenizer == "words" else ""
    return Figures({f"{name}{mark}": 100 * scores[name] for name in chosen}, (100 * x for x in ciders))


def missing_caption_metrics(tokenizer: Tokenizer = "ptb") -> dict[str, str]:
    """Return the metrics that cannot be computed here: name -> why, and what to do about it.

    >>> missing_caption_metrics("words")["METEOR"]  # doctest: +SKIP
    "it takes the official words only; leave out tokenizer='words'"
    """
    if tokenizer not in ("ptb", "words"):
        raise unknown("tokenizer", str(tokenizer), ("ptb", "words"))
    if find_spec("pycocoevalcap") is None:
        return dict.fromkeys(
            CAPTION_METRICS, "the package pycocoevalcap is not installed; in the checkout: pip install -e '.[eval]'"
        )
    if tokenizer == "words":
        rest = [name for name in CAPTION_METRICS if name not in WITHOUT_JAVA]
        return dict.fromkeys(rest, "it takes the official words only; leave out tokenizer='words'")
    if which("java") is None:
        return dict.fromkeys(
            CAPTION_METRICS,
            "the official tokenizer needs Java 8 or later, and there is no 'java' on the PATH; install a Java runtime "
            "(such as openjdk), or take tokenizer='words' for values that are not comparable with published ones",
        )
    lacking = java.missing_spice_jars()
    return {"SPICE": f"it lacks {', '.join(map(str, lacking))}; put them there from CoreNLP 3.6.0"} if lacking else {}


def check_names(metrics: Sequence[str] | None, missing: Mapping[str, str]) -> None:
    """Raise an error where a metric that is asked for (None = whatever can be computed) is unknown or missing."""
    for name in CAPTION_METRICS if metrics is None else metrics:
        if name not in CAPTION_METRICS:
            raise unknown("caption metric", str(name), CAPTION_METRICS)
        if name in missing and (metrics is not None or len(missing) == len(CAPTION_METRICS)):
            raise MultiflowError(f"{name} cannot be computed: {missing[name]}")


def _check(predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]]) -> None:
    if not references:
        raise MultiflowError("no references were given; expected image id -> captions, of at least one image")
    for what, absent in (
        ("have no prediction", [key for key in references if key not in predictions]),
        ("have no references", [key for key in predictions if key not in references]),
    ):
        if absent:
            raise MultiflowError(
                f"{len(absent)} images {what}, such as {_some(absent)}; expected the same ids on both sides"
            )
    for key, texts in references.items():
        if not isinstance(predictions[key], str):
            raise MultiflowError(f"image {key!r} has the prediction {predictions[key]!r}; expected a text")
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise MultiflowError(f"image {key!r} has the references {texts!r}; expected a list of texts, none blank")


def _choose(metrics: Sequence[str] | None, tokenizer: Tokenizer) -> list[str]:
    missing = missing_caption_metrics(tokenizer)
    if isinstance(metrics, str):
        raise MultiflowError(f"metrics='{metrics}' was given; expected a list of names: metrics=['{metrics}']")
    asked = CAPTION_METRICS if metrics is None else tuple(dict.fromkeys(metrics))
    check_names(metrics, missing)
    if not asked:
        raise MultiflowError(f"no metrics were asked for; known: {', '.join(CAPTION_METRICS)}")
    return [name for name in asked if name not in missing]


def _score(chosen: Sequence[str], targets: Tokens, hypotheses: Tokens) -> tuple[dict[str, float], list[float]]:
    """Compute the metrics that were chosen, as fractions, and CIDEr of each image; BLEU's four come together."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scores: dict[str, float] = {}
    ciders: list[float] = []
    if not set(BLEU).isdisjoint(chosen):
        values, _ = Bleu(4).compute_score(targets, hypotheses, verbose=0)
        scores |= dict(zip(BLEU, map(float, values), strict=True))
    if "ROUGE-L" in chosen:
        scores["ROUGE-L"] = float(Rouge().compute_score(targets, hypotheses)[0])
    if "CIDEr" in chosen:
        mean, of_each = Cider().compute_score(targets, hypotheses)
        scores["CIDEr"], ciders = float(mean), of_each.tolist()
    for name, run in (("METEOR", java.meteor), ("SPICE", java.spice)):
        if name in chosen:
            scores[name] = run(targets, hypotheses)
    return scores, ciders


def _in_words(texts: Iterable[str]) -> list[str]:
    return [" ".join(PARTS_OF_WORDS.findall(text.lower())) for text in texts]


def _some(keys: Sequence[Hashable]) -> str:
    return ", ".join(repr(key) for key in keys[:5])
