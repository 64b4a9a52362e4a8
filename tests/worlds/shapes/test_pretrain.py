from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import multiflow as mf
from multiflow.base.artifacts import read_facts
from multiflow.base.errors import MultiflowError
from multiflow.families.blip.contrastive import MEMORY, momentum_pairs
from multiflow.training.checkpoint import checkpoints
from multiflow.training.tracking import read_metrics
from multiflow.worlds.shapes import pretrain as module
from multiflow.worlds.shapes.models import shapes_model, shapes_tokenizer
from multiflow.worlds.shapes.pretrain import joint_batch, pretrain, train_joint, train_vision, vision_batch
from tests.tiny import FAMILIES, SMALL, SMALL_BLIP


class Stopped(Exception):
    """Ends a run in the middle."""


def stop_at(stage: str, step: int):
    def progress(p):
        if (p.stage, p.step) == (stage, step):
            raise Stopped

    return progress


@pytest.fixture(scope="module", params=list(FAMILIES))
def whole(request, tmp_path_factory):
    """A run of either family to the end: its settings, folder, figures and progress."""
    out = tmp_path_factory.mktemp("whole") / "run"
    seen = []
    figures = pretrain(FAMILIES[request.param], out, progress=seen.append)
    return FAMILIES[request.param], out, figures, seen


def test_both_stages_run_and_the_model_is_released(whole):
    settings, out, figures, seen = whole
    assert [(p.stage, p.step) for p in seen] == [("vision", s) for s in range(1, 5)] + [
        ("joint", s) for s in range(1, 9)
    ]
    assert read_facts(out / "figures.json", "figures", "") == figures
    words = {"xvlm": {"mlm", "mlm_majority"}, "blip": {"lm", "lm_majority"}}
    assert set(figures) >= {"tr1", "ir10", "itc_tr1"} | words[settings.family]
    joint = set().union(*read_metrics(out / "joint"))
    losses = {
        "xvlm": {"loss_itc", "loss_itm", "loss_mlm", "region_loss_itc", "region_loss_giou"},
        "blip": {"loss_itc", "loss_itm", "loss_lm"},
    }
    assert losses[settings.family] <= joint
    assert any(name.startswith("region_") for name in joint) == (settings.family == "xvlm")
    assert "patches" in read_metrics(out / "vision")[-1]
    mf.load_model(out / "model")


def test_the_card_tells_how_the_model_was_made(whole):
    settings, out, _, _ = whole
    card = (out / "model" / "README.md").read_text()
    family = " --family blip" if settings.family == "blip" else ""
    assert f"multiflow pretrain OUT_DIR{family} --image-size 24 " in card
    assert "--seed" not in card.split("multiflow pretrain")[1].split("\n")[0]
    layers = {"xvlm": "1 text and 1 fusion layers", "blip": "1 layers of the text encoder"}
    assert f"width 16, 2 vision layers, {layers[settings.family]}" in card
    assert ("region captions" in card) == (settings.family == "xvlm")
    assert ("queue of 1,024" in card) == (settings.family == "blip")


@pytest.mark.parametrize(("stage", "step"), [("vision", 4), ("joint", 5)])
def test_a_run_stopped_in_either_stage_resumes_to_the_same_bits(whole, tmp_path, stage, step):
    """BLIP's momentum copies and queues are in its checkpoints, and alpha is a function of the step."""
    settings, out, figures, _ = whole
    with pytest.raises(Stopped):
        pretrain(settings, tmp_path, progress=stop_at(stage, step))
    assert pretrain(settings, tmp_path, resume=True) == figures
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (out / weights).read_bytes()
    ours, theirs = (load_file(checkpoints(run / "joint")[-1] / "model.safetensors") for run in (tmp_path, out))
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert any("_m." in name for name in ours) == (settings.family == "blip")


def test_another_run_in_the_folder_is_refused(whole):
    settings, out, _, _ = whole
    with pytest.raises(MultiflowError, match="already holds a run"):
        pretrain(settings, out)
    with pytest.raises(MultiflowError, match=r"width \(16 then, 32 now\)"):
        pretrain(replace(settings, width=32), out, resume=True)
    other = {"xvlm": "blip", "blip": "xvlm"}[settings.family]
    with pytest.raises(MultiflowError, match=rf"family \({settings.family} then, {other} now\)"):
        pretrain(replace(settings, family=other), out, resume=True)


def test_the_joint_stage_of_blip_starts_with_copies_of_the_warmed_up_towers(tmp_path, monkeypatch):
    tokenizer = shapes_tokenizer("blip")
    model = shapes_model(SMALL_BLIP, len(tokenizer))
    train_vision(model, SMALL_BLIP, tmp_path / "vision")
    assert not all(torch.equal(copy, online) for copy, online in momentum_pairs(model))
    seen = []
    monkeypatch.setattr(
        module, "train", lambda model, *_, **__: seen.append([torch.equal(*pair) for pair in momentum_pairs(model)])
    )
    train_joint(model, tokenizer, SMALL_BLIP, tmp_path / "joint")
    assert len(seen) == 1
    assert all(seen[0])


def test_the_share_of_the_momentum_model_rises_through_the_first_half(tmp_path, monkeypatch):
    tokenizer = shapes_tokenizer("blip")
    model = shapes_model(SMALL_BLIP, len(tokenizer))
    alphas = []
    forward = type(model).forward

    def listening(self, *args, alpha=None, **kwargs):
        alphas.append(alpha)
        return forward(self, *args, alpha=alpha, **kwargs)

    monkeypatch.setattr(type(model), "forward", listening)
    train_joint(model, tokenizer, SMALL_BLIP, tmp_path / "joint")
    assert alphas == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4])


def test_what_training_remembers_is_not_released(whole):
    settings, out, _, _ = whole
    names = load_file(out / "model" / "model.safetensors")
    trained = load_file(checkpoints(out / "joint")[-1] / "model.safetensors")
    remembered = {name for name in trained if re.search(MEMORY, name)}
    assert bool(remembered) == (settings.family == "blip")
    assert not remembered & set(names)


TOKENIZER = shapes_tokenizer("blip")


@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES)
def test_batches_are_functions_of_the_position(settings):
    for make in (vision_batch, lambda settings, position: joint_batch(settings, TOKENIZER, position)):
        for position in (0, 3, 7):
            one, two = make(settings, position), make(settings, position)
            assert all(torch.equal(one[name], two[name]) for name in one)
        assert not torch.equal(make(settings, 0)["pixel_values"], make(settings, 1)["pixel_values"])
        seeded = make(replace(settings, seed=1), 0)
        assert not torch.equal(make(settings, 0)["pixel_values"], seeded["pixel_values"])


def test_every_so_many_batches_are_regions():
    kinds = ["boxes" in joint_batch(SMALL, TOKENIZER, position) for position in range(8)]
    assert kinds == [False, False, False, True] * 2
    never = replace(SMALL, region_every=0)
    assert not any("boxes" in joint_batch(never, TOKENIZER, position) for position in range(8))
    batch = joint_batch(SMALL, TOKENIZER, 7)
    assert len(batch["pixel_values"]) == 3
    assert set(batch["image_index"].tolist()) == {0, 1, 2}
    assert (batch["boxes"] > 0).all()
    assert (batch["boxes"] < 1).all()
    assert not batch["is_image"].any()


def test_the_batches_of_blip_are_pairs_whose_texts_end_with_sep():
    for position in range(8):
        batch = joint_batch(SMALL_BLIP, TOKENIZER, position)
        assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}
        last = batch["attention_mask"].sum(1) - 1
        assert (batch["input_ids"].gather(1, last[:, None]) == TOKENIZER.sep_token_id).all()
        assert (batch["input_ids"] == TOKENIZER.sep_token_id).sum() == len(last)
        assert (batch["input_ids"][:, 0] == TOKENIZER.cls_token_id).all()
    pairs = joint_batch(SMALL, TOKENIZER, 0)
    assert torch.equal(pairs["pixel_values"], joint_batch(SMALL_BLIP, TOKENIZER, 0)["pixel_values"])
    assert not (pairs["input_ids"] == TOKENIZER.sep_token_id).any()


def test_the_curriculum_begins_with_one_object():
    long = replace(SMALL, steps=1000, batch_size=64, region_every=0)

    def words(position):
        return joint_batch(long, TOKENIZER, position)["attention_mask"].sum(1).float().mean()

    assert words(0) < words(60) < words(900)
