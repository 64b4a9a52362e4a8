from __future__ import annotations

import doctest
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

from multiflow.base.errors import MultiflowError
from multiflow.data import build_word_tokenizer, encode_texts
from multiflow.metrics import recall
from multiflow.tasks.retrieval import rerank
from multiflow.tasks.retrieval.rerank import UNFOUND, Recall, evaluate_retrieval
from multiflow.tasks.task_model import task_model
from multiflow.worlds.shapes import describe, make_scenes
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests.tiny import FAMILIES, SMALL, SMALL_BLIP, pictures

TOKENIZER = shapes_tokenizer("blip")  # X-VLM's, and two tokens more
SCENES = make_scenes("test", 9)
CAPTIONS = [describe(scene, 1 + i % 3) for i, scene in enumerate(SCENES)]
PIXELS = pictures(SCENES, SMALL.image_size)


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    return shapes_model(FAMILIES[request.param], len(TOKENIZER)).eval()


def match_score(model, ids, mask, text, image, cosine):
    """The matching score of one pair, the plain way."""
    if model.config.model_type == "xvlm":
        return model.itm_head(model.fuse(text, mask, image)[:, 0])[0, 1]
    return model.itm_head(model.ground(ids, mask, image)[:, 0])[0, 1] + cosine


@pytest.fixture(scope="module")
@torch.no_grad()
def all_pairs(model):
    """Cosines and match scores of every image (rows) with every text (columns), one pair at a time."""
    end = model.config.model_type != "xvlm"
    texts = [text for several in CAPTIONS for text in several]
    cosine, match = torch.empty(len(SCENES), len(texts)), torch.empty(len(SCENES), len(texts))
    for i, pixels in enumerate(PIXELS):
        image = model.encode_image(pixels[None])
        for j, caption in enumerate(texts):
            ids, mask = map(torch.from_numpy, encode_texts(TOKENIZER, [caption], end=end))
            text = model.encode_text(ids, mask)
            cosine[i, j] = model.image_features(image)[0] @ model.text_features(text)[0]
            match[i, j] = match_score(model, ids, mask, text, image, cosine[i, j])
    return cosine, match


def brute_force(cosine: torch.Tensor, match: torch.Tensor, right: torch.Tensor, shortlist: int) -> list[int]:
    """Rank of the best right answer of each row, the plain way."""
    ranks = []
    for row in range(len(cosine)):
        listed = cosine[row].argsort(descending=True)[:shortlist].tolist()
        listed.sort(key=lambda answer: -match[row, answer].item())
        ranks.append(next((rank for rank, answer in enumerate(listed) if right[row, answer]), UNFOUND))
    return ranks


@pytest.mark.parametrize("shortlist", [1, 4, 16, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_ranks_equal_those_of_all_pairs_computed_one_by_one(model, all_pairs, shortlist, batch_size):
    cosine, match = all_pairs
    owner = torch.tensor([i for i, several in enumerate(CAPTIONS) for _ in several])
    right = owner == torch.arange(len(SCENES))[:, None]
    found = evaluate_retrieval(model, PIXELS, CAPTIONS, TOKENIZER, shortlist=shortlist, batch_size=batch_size)
    assert found.text_ranks.tolist() == brute_force(cosine, match, right, shortlist)
    assert found.image_ranks.tolist() == brute_force(cosine.T, match.T, right.T, shortlist)
    assert found.top_texts.shape == (9, min(shortlist, len(owner)))
    assert found.top_images.shape == (len(owner), min(shortlist, 9))


def test_without_reranking_the_order_is_that_of_the_cosines(model, all_pairs):
    cosine, _ = all_pairs
    found = evaluate_retrieval(model, PIXELS, CAPTIONS, TOKENIZER)
    owner = torch.tensor([i for i, several in enumerate(CAPTIONS) for _ in several])
    best = owner[cosine.argmax(1)] == torch.arange(9)
    assert found.itc.tr1 == pytest.approx(100 * best.float().mean().item())
    assert found.itc.ir1 == pytest.approx(100 * (cosine.argmax(0) == owner).float().mean().item())


class Knows:
    """Image i holds the number i, text i the word "w<i>"; cosines prefer the next image, the matching head is right."""

    training, device, dtype = False, torch.device("cpu"), torch.float32
    config = SimpleNamespace(model_type="xvlm")

    def eval(self):
        return self

    def modules(self):
        return [self]

    def encode_image(self, pixels):
        return pixels

    def encode_text(self, ids, mask):
        return (ids[:, 1:2, None] - 5.0).expand(-1, ids.shape[1], 2)

    def image_features(self, embeds):
        return one_hot(embeds[:, 0].long(), 8).float()

    def text_features(self, embeds):
        return one_hot((embeds[:, 0, 0].long() + 1) % 8, 8).float() + 0.5 * one_hot(embeds[:, 0, 0].long(), 8)

    def fuse(self, text, mask, images, image_index):
        return text - images[image_index][:, None]

    def itm_head(self, x):
        return -x.abs()


def test_reranking_puts_right_what_is_on_the_shortlist():
    words = build_word_tokenizer([f"w{i}" for i in range(8)])
    pixels, texts = torch.arange(8.0)[:, None].expand(8, 2), [[f"w{i}"] for i in range(8)]
    found = evaluate_retrieval(Knows(), pixels, texts, words, shortlist=2)
    assert found.itc == Recall(0, 100, 100, 0, 100, 100)
    assert found.reranked == Recall(100, 100, 100, 100, 100, 100)
    assert found.reranked.mean == 100
    assert found.itc.mean == pytest.approx(400 / 6)
    assert evaluate_retrieval(Knows(), pixels, texts, words, shortlist=1).reranked == Recall(0, 0, 0, 0, 0, 0)


def test_the_mode_of_the_model_is_given_back(model):
    model.train()
    evaluate_retrieval(model, PIXELS[:2], CAPTIONS[:2], TOKENIZER)
    assert model.training
    model.eval()


def test_padding_does_not_matter(model):
    long = [
        [*CAPTIONS[0], "a red star, a blue disc, a green moon and a pink heart on a grey background"],
        *CAPTIONS[1:],
    ]
    a = evaluate_retrieval(model, PIXELS, CAPTIONS, TOKENIZER, shortlist=100)
    b = evaluate_retrieval(model, PIXELS, long, TOKENIZER, shortlist=100)
    added = len(CAPTIONS[0])
    for row_a, row_b in zip(a.top_texts.tolist(), b.top_texts.tolist(), strict=True):
        assert row_a == [x - (x > added) for x in row_b if x != added]


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        (CAPTIONS[:3], {}, "9 images and captions of 3 were given"),
        ([*CAPTIONS[:8], []], {}, "expected at least one caption each"),
        (CAPTIONS, {"shortlist": 0}, "shortlist 0 and batch_size 128"),
    ],
)
def test_bad_input_is_refused(model, captions, options, message):
    with pytest.raises(MultiflowError, match=message):
        evaluate_retrieval(model, PIXELS, captions, TOKENIZER, **options)


def test_other_models_are_refused():
    other = SimpleNamespace(config=SimpleNamespace(model_type="clip"))
    with pytest.raises(MultiflowError, match="of type 'clip'; this task takes .* xvlm"):
        evaluate_retrieval(other, PIXELS, CAPTIONS, TOKENIZER)


def test_nothing_to_search_is_refused(model):
    with pytest.raises(MultiflowError, match="0 images"):
        evaluate_retrieval(model, PIXELS[:0], [], TOKENIZER)


def test_the_retrieval_model_finds_what_the_pretraining_model_finds():
    tokenizer, scenes = shapes_tokenizer("blip"), make_scenes("test", 7)
    captions, pixels = [describe(scene, 1 + i % 3) for i, scene in enumerate(scenes)], pictures(scenes, 24)
    pretrained = shapes_model(SMALL_BLIP, len(tokenizer)).eval()
    model = task_model(pretrained, "retrieval")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, expected = (evaluate_retrieval(m, pixels, captions, tokenizer, shortlist=4) for m in (model, pretrained))
    assert torch.equal(found.top_texts, expected.top_texts)
    assert torch.equal(found.top_images, expected.top_images)
    assert found.reranked == expected.reranked
    assert found.itc == expected.itc
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_recall_by_hand():
    ranks = torch.tensor([0, 0, 1, 4, 5, 9, 10, 2**31 - 1])
    assert recall(ranks) == (25.0, 50.0, 75.0)
    assert recall(ranks, [2]) == (37.5,)
    assert recall(torch.tensor([0, 3, 3])) == pytest.approx((100 / 3, 100, 100))


@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_ranks_that_are_no_list_are_named(shape):
    with pytest.raises(MultiflowError, match="one rank per query") as error:
        recall(torch.zeros(shape, dtype=torch.long))
    assert str(shape) in str(error.value)


def test_examples_in_docstrings_are_true():
    assert doctest.testmod(rerank, extraglobs={"torch": torch}).failed == 0
