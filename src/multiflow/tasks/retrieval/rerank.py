"""Image-text retrieval: a shortlist by contrastive similarity, re-ranked by the matching head.

As X-VLM (arXiv 2111.08276) and BLIP (arXiv 2201.12086) are evaluated: every image takes the ``shortlist`` texts of the
highest cosine, every text as many images; the matching head then scores these pairs only. X-VLM ranks them by the logit
of "match", BLIP by that logit plus the cosine. A right answer that is not on the shortlist is not found.

Memory stays bounded: of the images only the contrastive features are kept, and their patches are computed again for the
pairs of one chunk at a time; of the texts the real tokens are kept (of X-VLM's their embeddings, of BLIP's their ids).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from multiflow.base.errors import MultiflowError
from multiflow.calibration import evaluating
from multiflow.data import encode_texts
from multiflow.families.family import texts_of
from multiflow.families.pairs import PairModel, PairScoring, scoring_of
from multiflow.tasks.inputs import Pixels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFOUND = 2**31 - 1  # rank of an answer that is not on the shortlist


@dataclass(frozen=True)
class Recall:
    """Share of the queries, in percent, whose best right answer is among the first 1, 5 and 10.

    ``tr``: an image looks for its texts; ``ir``: a text looks for its image.
    """

    tr1: float
    tr5: float
    tr10: float
    ir1: float
    ir5: float
    ir10: float

    @property
    def mean(self) -> float:
        return fmean(asdict(self).values())


@dataclass(frozen=True)
class RetrievalResult:
    """What `evaluate_retrieval` found."""

    reranked: Recall  # recall after the matching head
    itc: Recall  # recall of the contrastive similarity alone
    # for every image the rank (from 0) of its best text after re-ranking; `UNFOUND` off the shortlist
    text_ranks: Int[Tensor, " images"] = field(repr=False)
    image_ranks: Int[Tensor, " texts"] = field(repr=False)  # for every text the rank of its image
    top_texts: Int[Tensor, "images shortlist"] = field(repr=False)  # for every image the shortlisted texts, best first
    top_images: Int[Tensor, "texts shortlist"] = field(repr=False)  # for every text the shortlisted images, best first


@dataclass(frozen=True)
class _Encoded:
    """What is kept of all texts for the matching head, and the contrastive features of texts and images."""

    kept: list[Tensor]
    text_feat: Tensor
    image_feat: Tensor


@torch.no_grad()
def evaluate_retrieval(
    model: PairModel,
    pixel_values: Float[Tensor, "images 3 side side"] | Pixels,
    captions: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    shortlist: int = 16,
    batch_size: int = 128,
    max_length: int = 40,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalResult:
    """Search the texts by image and the images by text, among all that are given.

    Args:
        model: X-VLM or BLIP; it is set to evaluation mode meanwhile.
        pixel_values: normalised images; of `Pixels`, those of one chunk at a time are in memory.
        captions: the texts of each image, at least one.
        tokenizer: the model's.
        shortlist: candidates a query that are re-ranked.
        batch_size: images, texts or pairs computed at once.
        max_length: tokens of a text at most.
        progress: called with (done, in all): texts and images encoded, and places of the shortlists re-ranked.

    Raises:
        MultiflowError: images and captions do not fit together, ``shortlist`` is below 1, or the model is of neither.

    >>> result = evaluate_retrieval(model, pixels, [["a red star"], ["a blue disc"]], tokenizer)  # doctest: +SKIP
    >>> result.reranked.tr1  # doctest: +SKIP
    100.0
    """
    if len(pixel_values) != len(captions) or not len(captions) or not all(captions):
        raise MultiflowError(
            f"{len(pixel_values)} images and captions of {len(captions)} were given; expected at least one caption each"
        )
    if shortlist < 1 or batch_size < 1:
        raise MultiflowError(f"shortlist {shortlist} and batch_size {batch_size} were given; expected at least 1")
    scoring = scoring_of(model)
    texts = [text for several in captions for text in several]
    owner = torch.tensor([i for i, several in enumerate(captions) for _ in several])
    top = min(shortlist, len(captions)), min(shortlist, len(texts))  # images for a text, texts for an image
    done, total = 0, len(texts) * (1 + top[0]) + len(captions) * (1 + top[1])

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with evaluating(model):
        kept, text_feat = _encode_texts(model, scoring, texts, tokenizer, batch_size, max_length, tick)
        features = []
        for _, chunk in _chunks(model, pixel_values, batch_size):
            features.append(model.image_features(model.encode_image(chunk)).float().cpu())
            tick(len(chunk))
        image_feat = torch.cat(features)
        top_texts = _top(image_feat, text_feat, shortlist, batch_size)
        top_images = _top(text_feat, image_feat, shortlist, batch_size)
        itc = _recall(
            _ranks(owner[top_texts] == torch.arange(len(captions))[:, None]), _ranks(top_images == owner[:, None])
        )
        found = _Encoded(kept, text_feat, image_feat)
        chunks = _chunks(model, pixel_values, batch_size)
        top_texts, top_images = _rerank(model, scoring, chunks, found, top_texts, top_images, batch_size, tick)
    text_ranks = _ranks(owner[top_texts] == torch.arange(len(captions))[:, None])
    image_ranks = _ranks(top_images == owner[:, None])
    return RetrievalResult(_recall(text_ranks, image_ranks), itc, text_ranks, image_ranks, top_texts, top_images)


def _chunks(model: PairModel, pixel_values: Tensor | Pixels, size: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(pixel_values), size):
        yield first, pixel_values[first : first + size].to(model.device, model.dtype)


def _encode_texts(
    model: PairModel,
    scoring: PairScoring,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    max_length: int,
    tick: Callable[[int], None],
) -> tuple[list[Tensor], Tensor]:
    """Return of every text what its family keeps of its real tokens, and the contrastive features of all."""
    kept: list[Tensor] = []
    features = []
    for start in range(0, len(texts), size):
        pair = encode_texts(tokenizer, texts[start : start + size], max_length=max_length, end=texts_of(model).ends)
        ids, mask = (torch.from_numpy(array).to(model.device) for array in pair)
        embeds = model.encode_text(ids, mask)
        features.append(model.text_features(embeds).float().cpu())
        rows = scoring.keep(ids, embeds)
        kept += [row[:length].clone() for row, length in zip(rows, mask.sum(1).tolist(), strict=True)]
        tick(len(ids))
    return kept, torch.cat(features)


def _top(queries: Tensor, answers: Tensor, shortlist: int, size: int) -> Tensor:
    count = min(shortlist, len(answers))
    return torch.cat([(rows @ answers.T).topk(count).indices for rows in queries.split(size)])


def _rerank(
    model: PairModel,
    scoring: PairScoring,
    chunks: Iterator[tuple[int, Tensor]],
    found: _Encoded,
    top_texts: Tensor,
    top_images: Tensor,
    size: int,
    tick: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Sort both shortlists by the score of the pairs; a pair that is on both is scored once."""
    count = len(found.kept)
    of_image = torch.arange(len(top_texts))[:, None] * count + top_texts
    of_text = top_images * count + torch.arange(count)[:, None]
    pairs = torch.cat([of_image.flatten(), of_text.flatten()]).unique()  # sorted: by image, then by text
    scores = torch.empty(len(pairs))
    tick(of_image.numel() + of_text.numel() - len(pairs))
    for first, chunk in chunks:
        inside = (pairs >= first * count) & (pairs < (first + size) * count)
        where = inside.nonzero().flatten()
        patches = model.encode_image(chunk)
        for part in where.split(size):
            image, text = pairs[part] // count, pairs[part] % count
            chosen = [found.kept[i] for i in text.tolist()]
            mask = pad_sequence([torch.ones(len(x), dtype=torch.long) for x in chosen], batch_first=True)
            states = scoring.match(
                model,
                pad_sequence(chosen, batch_first=True),
                mask.to(model.device),
                patches,
                (image - first).to(model.device),
            )
            scores[part] = model.itm_head(states)[:, 1].float().cpu()
            if scoring.adds_cosine:
                scores[part] += (found.image_feat[image] * found.text_feat[text]).sum(1)
            tick(len(part))
    return _sorted(top_texts, of_image, pairs, scores), _sorted(top_images, of_text, pairs, scores)


def _sorted(answers: Tensor, keys: Tensor, pairs: Tensor, scores: Tensor) -> Tensor:
    order = scores[torch.searchsorted(pairs, keys)].sort(dim=1, descending=True, stable=True).indices
    return answers.gather(1, order)


def _ranks(right: Tensor) -> Tensor:
    return torch.where(right.any(1), right.int().argmax(1), UNFOUND)


def recall(ranks: Int[Tensor, " queries"], ks: Sequence[int] = (1, 5, 10)) -> tuple[float, ...]:
    """Return for each ``k`` the share of the queries, in percent, that found a right answer among their first ``k``.

    Args:
        ranks: place of the best right answer of each query, counted from 0; any large number = not found.
        ks: how many answers are looked at.

    Raises:
        MultiflowError: there are no queries.

    >>> recall(torch.tensor([0, 4, 5, 100]))
    (25.0, 50.0, 75.0)
    """
    if ranks.ndim != 1 or not len(ranks):
        raise MultiflowError(f"ranks of shape {tuple(ranks.shape)} were given; expected one rank per query")
    return tuple(100 * int((ranks < k).sum()) / len(ranks) for k in ks)


def _recall(text_ranks: Tensor, image_ranks: Tensor) -> Recall:
    return Recall(*recall(text_ranks), *recall(image_ranks))
