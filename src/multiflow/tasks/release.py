"""From a trained X-VLM to the folder that ships: float16 weights, tokenizer, model card; and the figures on the card.

The figures are those of the stored weights, read back from the folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multiflow.data import collate_pairs, to_pixels
from multiflow.data.shapes import describe, make_scenes, render
from multiflow.models.xvlm import XVLMForPretraining
from multiflow.tasks.retrieval import evaluate_retrieval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCENES, CAPTIONS, SHORTLIST = 500, 5, 16


def evaluate_shapes(
    model: XVLMForPretraining,
    tokenizer: PreTrainedTokenizerBase,
    *,
    scenes: int = SCENES,
    captions: int = CAPTIONS,
    shortlist: int = SHORTLIST,
    split: str = "test",
    style: str = "plain",
    seed: int = 0,
) -> dict[str, float]:
    """Return zero-shot retrieval and masked-word figures, in percent, on scenes that training never shows.

    Keys: ``tr1`` ... ``ir10`` after re-ranking, ``itc_tr1`` ... ``itc_ir10`` of the contrastive similarity alone,
    ``mlm`` (masked words guessed) and ``mlm_majority`` (guessing the most frequent one always).
    """
    drawn = make_scenes(split, scenes, seed=seed, style=style)
    side = model.config.image_size
    images = [render(scene, side) for scene in drawn]
    texts = [describe(scene, captions) for scene in drawn]
    pixels = torch.from_numpy(to_pixels(images, side))
    found = evaluate_retrieval(model, pixels, texts, tokenizer, shortlist=shortlist)
    figures = vars(found.reranked) | {f"itc_{name}": value for name, value in vars(found.itc).items()}
    batch = collate_pairs(images, [several[0] for several in texts], tokenizer=tokenizer, image_size=side, seed=seed)
    guessed, majority = masked_word_accuracy(model, batch)
    return figures | {"mlm": guessed, "mlm_majority": majority}


@torch.no_grad()
def masked_word_accuracy(model: XVLMForPretraining, batch: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the share of masked tokens that the model guesses and that of the most frequent one, in percent."""
    was_training = model.training
    model.eval()
    batch = {name: value.to(model.device) for name, value in batch.items()}
    image = model.encode_image(batch["pixel_values"].to(model.dtype))
    text = model.encode_text(batch["mlm_input_ids"], batch["attention_mask"])
    fused = model.fuse(text, batch["attention_mask"], image)
    guesses = model.text_encoder.predict(fused, batch["mlm_positions"]).argmax(-1)
    model.train(was_training)
    real = batch["mlm_labels"] != -100
    labels = batch["mlm_labels"][real]
    right = (guesses[real] == labels).float().mean().item()
    return 100 * right, 100 * labels.bincount().max().item() / len(labels)


def release(
    model: XVLMForPretraining,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    facts: Mapping[str, object],
    *,
    scenes: int = SCENES,
    seed: int = 0,
) -> dict[str, float]:
    """Write a Hugging Face folder of float16 weights, tokenizer and model card; return the figures of these weights.

    The folder appears under its name only when it is complete, and replaces an older one.

    Args:
        model: what to store.
        tokenizer: its tokenizer.
        folder: where to.
        facts: rows of the table in the model card: what the model is and how it was made.
        scenes: number of the scenes that it is tested on.
        seed: theirs.
    """
    from transformers import AutoTokenizer

    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    deepcopy(model).cpu().half().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    config = json.loads((partial / "config.json").read_text())
    config["dtype"] = "float32"  # compute in float32, though stored in float16
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    stored = XVLMForPretraining.from_pretrained(str(partial))
    figures = evaluate_shapes(stored, AutoTokenizer.from_pretrained(partial), scenes=scenes, seed=seed)
    weights = (partial / "model.safetensors").stat().st_size
    rows = {**facts, "weights": f"{model.num_parameters():,} parameters, float16 on disk, {weights / 1e6:.1f} MB"}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    (partial / "README.md").write_text(
        CARD.format(facts=table, scenes=scenes, captions=CAPTIONS, shortlist=SHORTLIST, **figures)
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return figures


CARD = """---
license: apache-2.0
library_name: multiflow
tags: [vision-language, x-vlm, shapes, synthetic]
---
# X-VLM, pretrained on Shapes

A small X-VLM trained from random weights on Shapes, the synthetic image-text world of `multiflow`: scenes of 1 to 4
objects, captions from a small grammar. It exists to be pruned: with it every part of the library can be tried in
minutes, without a download. It knows nothing of photographs.

```python
from multiflow.models.xvlm import XVLMForPretraining
model = XVLMForPretraining.from_pretrained("xvlm-shapes")
```

| | |
|---|---|
{facts}

## Figures
Of the stored float16 weights, in percent, on {scenes} scenes of the "test" split with {captions} captions each.
A shortlist of {shortlist} by contrastive similarity (ITC) is re-ranked by the matching head (ITM).

| | TR@1 | TR@5 | TR@10 | IR@1 | IR@5 | IR@10 |
|---|---|---|---|---|---|---|
| ITC alone | {itc_tr1:.1f} | {itc_tr5:.1f} | {itc_tr10:.1f} | {itc_ir1:.1f} | {itc_ir5:.1f} | {itc_ir10:.1f} |
| re-ranked | {tr1:.1f} | {tr5:.1f} | {tr10:.1f} | {ir1:.1f} | {ir5:.1f} | {ir10:.1f} |

Masked words guessed: {mlm:.1f} (the most frequent word: {mlm_majority:.1f}).
"""
