from __future__ import annotations

import torch

from multiflow.tasks.retrieval.task import evaluate_retrieval
from multiflow.tasks.task_model import task_model
from multiflow.worlds.shapes import describe, make_scenes
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from tests.tiny import SMALL_BLIP, pictures


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
