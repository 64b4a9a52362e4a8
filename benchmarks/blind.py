"""What answers without looking reach on the tasks of Shapes: chance, the majority answer, the best constant caption.

python benchmarks/blind.py runs/bench/data/shapes [--limit 300] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from multiflow.data import answer_weights
from multiflow.metrics import caption_scores, vqa_accuracy
from multiflow.tasks.task import TASKS


def chance(folder: Path, limit: int | None) -> float:
    """Mean R@1 of an order by chance, in percent."""
    test = TASKS["retrieval"].open(str(folder / "coco"), "test", limit=limit)
    captions = sum(map(len, test.texts))
    by_image = sum(len(own) / captions for own in test.texts) / len(test)  # the first caption is one of its own
    return 100 * (by_image + 1 / len(test)) / 2


def majority(folder: Path, limit: int | None) -> tuple[str, float]:
    """The answer that training questions have most often, and its accuracy on test questions in percent."""
    train, test = (TASKS["vqa"].open(str(folder / "vqa"), split) for split in ("train", "test"))
    shares: Counter[str] = Counter()
    for given in train.texts:
        shares.update(answer_weights(given))
    answer = shares.most_common(1)[0][0]
    asked = test.texts[:limit]
    return answer, sum(vqa_accuracy(answer, given) for given in asked) / len(asked)


def constant(folder: Path, limit: int | None, candidates: int) -> tuple[str, float]:
    """The caption that, said of every picture, has the highest CIDEr on the validation pictures; its CIDEr on test.

    Candidates are the captions that training pictures have most often.
    """
    train, val, test = (TASKS["captioning"].open(str(folder / "coco"), s) for s in ("train", "val", "test"))
    counts = Counter(text for own in train.texts for text in own)

    def cider(caption: str, texts: tuple[tuple[str, ...], ...]) -> float:
        said = dict.fromkeys(range(len(texts)), caption)
        return caption_scores(said, dict(enumerate(texts)), metrics=["CIDEr"], tokenizer="words")["CIDEr (words)"]

    best = max((text for text, _ in counts.most_common(candidates)), key=lambda text: cider(text, val.texts))
    return best, cider(best, test.texts[:limit])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that 'multiflow shapes' wrote")
    parser.add_argument("--limit", type=int, help="test pictures, and test questions, at most")
    parser.add_argument("--candidates", type=int, default=400, help="captions tried")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    answer, accuracy = majority(given.folder, given.limit)
    caption, cider = constant(given.folder, given.limit, given.candidates)
    found = {
        "retrieval": {"mean R@1": chance(given.folder, given.limit)},
        "vqa": {"accuracy": accuracy, "answer": answer},
        "captioning": {"CIDEr (words)": cider, "caption": caption},
    }
    for task, figures in found.items():
        print(task, *(f"{k}: {v:.1f}" if isinstance(v, float) else f"'{v}'" for k, v in figures.items()), sep="  ")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
