"""`mf.KeepSparse` in transformers' Trainer."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

import multiflow as mf

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def classifier():
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=3, num_labels=2, **SIZES))


def pictures(count=8):
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": i % 2} for i in range(count)]


def arguments(folder, **more):
    quiet = {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    return TrainingArguments(
        str(folder), **{"max_steps": 3, "save_strategy": "no", "learning_rate": 0.1, **quiet, **more}
    )


def test_a_trainer_keeps_zeros(tmp_path):
    model = classifier()
    masks = mf.prune(model, "magnitude", 0.5).masks[0.5]
    before = {name: model.get_submodule(name).weight.detach().clone() for name in masks}
    found = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **given):
            found.append(masks.is_applied(given["model"]))

    trainer = Trainer(
        model,
        arguments(tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2),
        train_dataset=pictures(),
        eval_dataset=pictures(4),
        callbacks=[mf.KeepSparse(masks), Watch()],
    )
    trainer.train()
    assert found == [True] * 3
    assert masks.is_applied(model)
    assert all((model.get_submodule(n).weight != before[n])[mask].float().mean() > 0.5 for n, mask in masks.items())
    trainer.train(resume_from_checkpoint=True)
    assert masks.is_applied(model)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_a_trainer_of_an_adapter_keeps_zeros_in_merging(tmp_path):
    base = classifier()
    masks = mf.prune(base, "magnitude", 0.5).masks[0.5]
    model = get_peft_model(base, LoraConfig(target_modules=list(masks), r=2))
    Trainer(model, arguments(tmp_path), train_dataset=pictures(), callbacks=[mf.KeepSparse(masks)]).train()
    assert any(p.count_nonzero() for name, p in model.named_parameters() if "lora_B" in name)
    assert masks.is_applied(model.merge_and_unload())


def test_a_weight_that_comes_back_ends_the_training(tmp_path):
    model = classifier()
    masks = mf.prune(model, "magnitude", 0.5).masks[0.5]
    name = next(iter(masks))
    callback = mf.KeepSparse(masks)

    class Revive(TrainerCallback):
        def on_evaluate(self, args, state, control, **given):
            given["model"].get_submodule(name).weight.data.fill_(1.0)

    trainer = Trainer(
        model,
        arguments(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=pictures(),
        eval_dataset=pictures(4),
        callbacks=[Revive(), callback],
    )
    with pytest.raises(mf.MultiflowError, match=f"dropped weights of layer '{name}' are no longer 0.0"):
        trainer.train()
    trainer.remove_callback(Revive)
    trainer.train()
    assert masks.is_applied(model)
    assert not any(m._load_state_dict_post_hooks for m in model.modules() if isinstance(m, torch.nn.Linear))


def test_what_are_no_masks_is_refused():
    with pytest.raises(mf.MultiflowError, match="KeepSparse got a dict; expected mf.Masks"):
        mf.KeepSparse({})
