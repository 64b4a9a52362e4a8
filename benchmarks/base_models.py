"""What the benchmarks share: base models with random weights, random batches, and the machine they run on."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Any

import torch

from multiflow.families.blip.models import BlipForPretraining, BlipPretrainingConfig
from multiflow.families.xvlm.models import XVLMConfig, XVLMForPretraining

MODELS = {
    "xvlm-base": ("X-VLM base", lambda: XVLMForPretraining(XVLMConfig())),
    "blip-base": ("BLIP base", lambda: BlipForPretraining(BlipPretrainingConfig())),
}
TOKENS, MASKED = 40, 8


def build(name: str) -> XVLMForPretraining | BlipForPretraining:
    """Return a base model at full size with random weights, always the same ones."""
    torch.manual_seed(0)
    return MODELS[name][1]().eval()


def make_batches(name: str, count: int, size: int, image_size: int = 224) -> list[dict[str, torch.Tensor]]:
    """Return batches of random images and texts of 10 to 40 tokens, as the model's forward takes them."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        lengths = torch.randint(TOKENS // 4, TOKENS + 1, (size, 1), generator=generator)
        mask = (torch.arange(TOKENS) < lengths).long()
        ids = torch.randint(1000, 30000, (size, TOKENS), generator=generator) * mask
        batch = {
            "pixel_values": torch.randn(size, 3, image_size, image_size, generator=generator),
            "input_ids": ids,
            "attention_mask": mask,
        }
        if name.startswith("xvlm"):
            positions = 1 + torch.rand(size, TOKENS // 4 - 1, generator=generator).argsort(1)[:, :MASKED]
            masked = ids.scatter(1, positions, 103)
            batch |= {"mlm_input_ids": masked, "mlm_positions": positions, "mlm_labels": ids.gather(1, positions)}
        batches.append(batch)
    return batches


def peak_mb() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, Any]:
    """Say what computed the figures, and how busy it was before."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    threads, load = torch.get_num_threads(), round(os.getloadavg()[0], 2)
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": load,
        "torch": torch.__version__,
    }
