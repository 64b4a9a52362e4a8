from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from multiflow.errors import MultiflowError
from multiflow.models.xvlm import XVLMForPretraining
from multiflow.tasks.pretrain import (
    PretrainSettings,
    joint_batch,
    plane_waves,
    pretrain,
    shapes_model,
    shapes_tokenizer,
    vision_batch,
)
from multiflow.tasks.tracking import read_metrics
from tests.tasks.small import SMALL

TOKENIZER = shapes_tokenizer()


class Stopped(Exception):
    """Ends a run in the middle."""


def stop_at(stage: str, step: int):
    def progress(p):
        if (p.stage, p.step) == (stage, step):
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    seen = []
    figures = pretrain(SMALL, out, progress=seen.append)
    return out, figures, seen


def test_both_stages_run_and_the_model_is_released(whole):
    out, figures, seen = whole
    assert [(p.stage, p.step) for p in seen] == [("vision", s) for s in range(1, 5)] + [
        ("joint", s) for s in range(1, 9)
    ]
    assert json.loads((out / "figures.json").read_text()) == figures
    assert set(figures) >= {"tr1", "ir10", "itc_tr1", "mlm", "mlm_majority"}
    joint = read_metrics(out / "joint")
    assert {"loss_itc", "loss_itm", "loss_mlm", "region_loss_itc", "region_loss_giou"} <= set().union(*joint)
    assert "patches" in read_metrics(out / "vision")[-1]
    card = (out / "model" / "README.md").read_text()
    assert "multiflow pretrain OUT_DIR --image-size 24 " in card
    assert "--seed" not in card.split("multiflow pretrain")[1].split("\n")[0]
    XVLMForPretraining.from_pretrained(out / "model")


@pytest.mark.parametrize(("stage", "step"), [("vision", 4), ("joint", 5)])
def test_a_run_stopped_in_either_stage_resumes_to_the_same_bits(whole, tmp_path, stage, step):
    out, figures, _ = whole
    with pytest.raises(Stopped):
        pretrain(SMALL, tmp_path, progress=stop_at(stage, step))
    assert pretrain(SMALL, tmp_path, resume=True) == figures
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (out / weights).read_bytes()


def test_another_run_in_the_folder_is_refused(whole):
    out, _, _ = whole
    with pytest.raises(MultiflowError, match="already holds a pretraining run"):
        pretrain(SMALL, out)
    with pytest.raises(MultiflowError, match="started with width=16, not 32"):
        pretrain(replace(SMALL, width=32), out, resume=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MultiflowError, match=r"cannot write to .*file/run: Not a directory"):
        pretrain(SMALL, tmp_path / "file" / "run")


def test_batches_are_functions_of_the_position():
    for make in (vision_batch, lambda settings, position: joint_batch(settings, TOKENIZER, position)):
        for position in (0, 3, 7):
            one, two = make(SMALL, position), make(SMALL, position)
            assert all(torch.equal(one[name], two[name]) for name in one)
        assert not torch.equal(make(SMALL, 0)["pixel_values"], make(SMALL, 1)["pixel_values"])
        assert not torch.equal(make(SMALL, 0)["pixel_values"], make(replace(SMALL, seed=1), 0)["pixel_values"])


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


def test_the_curriculum_begins_with_one_object():
    long = replace(SMALL, steps=1000, batch_size=64, region_every=0)

    def words(position):
        return joint_batch(long, TOKENIZER, position)["attention_mask"].sum(1).float().mean()

    assert words(0) < words(60) < words(900)


def test_the_model_depends_on_the_seed_alone():
    one = shapes_model(SMALL, 50).state_dict()
    torch.manual_seed(99)
    two = shapes_model(SMALL, 50).state_dict()
    other = shapes_model(replace(SMALL, seed=1), 50).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["text_proj.weight"], other["text_proj.weight"])


def test_positions_start_apart():
    waves = plane_waves(6, 32)
    assert waves.shape == (36, 32)
    near = waves @ waves.T
    assert (near.argmax(1) == torch.arange(36)).all()
    assert near[0, 1] > near[0, 3]  # the next column is more alike than the third


def test_the_default_model_fits_into_8_megabytes_of_float16():
    model = shapes_model(PretrainSettings(), len(TOKENIZER))
    assert 2 * model.num_parameters() < 8e6
    assert model.config.vision["local_attn_depth"] == 2
