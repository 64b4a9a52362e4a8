"""What the processes that tests fork off have imported: see `tests.processes`."""

from __future__ import annotations

import torch
import torch._dynamo  # optimizers import it when they step
import torch.distributed.fsdp
import torch.distributed.launcher.api
import torch.distributed.nn

from multiflow.worlds.shapes.models import Pretraining, shapes_model, shapes_tokenizer

for family in ("xvlm", "blip"):
    shapes_model(Pretraining(family=family), len(shapes_tokenizer(family)))
torch.set_num_threads(1)  # a process with threads cannot be forked
