"""From a model trained on Shapes to the folder that ships: figures on held-out scenes, and the model card with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from multiflow.data import collate_pairs, to_pixels
from multiflow.families.family import family_of, memory_of, texts_of
from multiflow.families.pairs import PairModel, guessed_words, recipe_of, scoring_of
from multiflow.tasks.retrieval.task import evaluate_retrieval
from multiflow.worlds.folder import fact_table, write_folder
from multiflow.worlds.shapes import describe, make_scenes, render
from multiflow.worlds.shapes.models import TEST_SCENES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CAPTIONS, SHORTLIST = 5, 16


def evaluate_shapes(
    model: PairModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    scenes: int = TEST_SCENES,
    captions: int = CAPTIONS,
    shortlist: int = SHORTLIST,
    split: str = "test",
    style: str = "plain",
    seed: int = 0,
) -> dict[str, float]:
    """Return zero-shot retrieval and word figures, in percent, on scenes that training never shows.

    Keys: ``tr1`` ... ``ir10`` after re-ranking, ``itc_tr1`` ... ``itc_ir10`` of the contrastive similarity alone;
    ``mlm`` (masked words guessed) or ``lm`` (next words guessed), as the family trains, and ``mlm_majority`` or
    ``lm_majority`` (guessing the most frequent one always).
    """
    recipe = recipe_of(model)
    shown = make_scenes(split, scenes, seed=seed, style=style)
    side = model.config.image_size
    images = [render(scene, side) for scene in shown]
    texts = [describe(scene, captions) for scene in shown]
    pixels = torch.from_numpy(to_pixels(images, side))
    found = evaluate_retrieval(model, pixels, texts, tokenizer, shortlist=shortlist)
    figures = vars(found.reranked) | {f"itc_{name}": value for name, value in vars(found.itc).items()}
    first = [several[0] for several in texts]
    batch = collate_pairs(
        images, first, tokenizer=tokenizer, image_size=side, seed=seed, mlm=recipe.masked, end=texts_of(model).ends
    )
    guessed, majority = guessed_words(model, batch, recipe.guess)
    return figures | {recipe.words: guessed, f"{recipe.words}_majority": majority}


def release(
    model: PairModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    facts: Mapping[str, object],
    *,
    scenes: int = TEST_SCENES,
    seed: int = 0,
) -> dict[str, float]:
    """Write a Hugging Face folder of float16 weights, tokenizer and model card; return the figures of these weights.

    The folder appears under its name only when it is complete, and replaces an older one. BLIP's momentum copies and
    queues are left out: loading makes copies that equal the weights, and fresh queues.

    Args:
        model: what to store.
        tokenizer: its tokenizer.
        folder: where to.
        facts: rows of the table in the model card: what the model is and how it was made.
        scenes: number of the scenes that it is tested on.
        seed: theirs.
    """
    from transformers import AutoTokenizer

    family, recipe = family_of(model), recipe_of(model)
    assert family is not None

    def evaluate(place: Path) -> dict[str, float]:
        stored = type(model).from_pretrained(str(place))
        return evaluate_shapes(stored, AutoTokenizer.from_pretrained(place), scenes=scenes, seed=seed)

    def card(figures: Mapping[str, float], size: str) -> str:
        guessed, majority = figures[recipe.words], figures[f"{recipe.words}_majority"]
        return CARD.format(
            name=family.title,
            tag=family.title.lower(),
            bundled=f"{family.name}-shapes",
            rule="logit plus cosine" if scoring_of(model).adds_cosine else "logit",
            words=f"{recipe.asks}: {guessed:.1f} (the most frequent word: {majority:.1f}).",
            facts=fact_table({**facts, "weights": size}),
            scenes=scenes,
            captions=CAPTIONS,
            shortlist=SHORTLIST,
            **figures,
        )

    return write_folder(model, tokenizer, folder, evaluate, card, leave_out=memory_of(model))


CARD = """---
license: apache-2.0
library_name: multiflow
tags: [vision-language, {tag}, shapes, synthetic]
---
# {name}, pretrained on Shapes

A small {name} trained from random weights on Shapes, the synthetic image-text world of `multiflow`: scenes of 1 to 4
objects, captions from a small grammar. It exists to be pruned: with it every part of the library can be tried in
minutes, without a download. It knows nothing of photographs.

```python
import multiflow as mf
model = mf.load_model("{bundled}")
```

| | |
|---|---|
{facts}

## Figures
Of the stored float16 weights, in percent, on {scenes} scenes of the "test" split with {captions} captions each.
A shortlist of {shortlist} by contrastive similarity (ITC) is re-ranked by the matching head (ITM: {rule}).

| | TR@1 | TR@5 | TR@10 | IR@1 | IR@5 | IR@10 |
|---|---|---|---|---|---|---|
| ITC alone | {itc_tr1:.1f} | {itc_tr5:.1f} | {itc_tr10:.1f} | {itc_ir1:.1f} | {itc_ir5:.1f} | {itc_ir10:.1f} |
| re-ranked | {tr1:.1f} | {tr5:.1f} | {tr10:.1f} | {ir1:.1f} | {ir5:.1f} | {ir10:.1f} |

{words}
"""
