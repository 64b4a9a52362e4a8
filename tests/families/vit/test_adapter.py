from __future__ import annotations

import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

import multiflow as mf


def test_dinov2_from_a_local_folder(tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = Dinov2Config(**sizes, image_size=32, patch_size=16, num_labels=3)
    Dinov2ForImageClassification(config).save_pretrained(tmp_path)
    model = mf.load_model(tmp_path)
    adapter = mf.adapter_for(model)
    layout = adapter.layout(model)
    assert {group: len(layers) for group, layers in layout.groups.items()} == {"vision": 12}
    assert list(mf.original_names(model)) == list(layout)
    batch = {"pixel_values": torch.randn(3, 3, 32, 32), "labels": torch.tensor([0, 1, 2])}
    assert mf.prune(model, "multiflow", 0.5, [batch]).masks[0.5].sparsity == 0.5
    gradients = torch.autograd.grad(adapter.loss(model, batch), [model.get_submodule(x).weight for x in layout])
    assert all(gradient.abs().max() > 0 for gradient in gradients)
