"""What `test_ranks` lets two processes do that torchrun's agent has started: commands one after the other.

``FOLDER/commands.json`` holds each by its name, with a free port; it runs in ``FOLDER/NAME`` and leaves its exit code
and what it printed in ``said-RANK.json``. The first takes what torchrun has set up as it is.
"""

from __future__ import annotations

import json
import os
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from multiflow.cli import main

OWN_SEED = "of another seed"


def run(words: list[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
    Path(f"said-{os.environ['RANK']}.json").write_text(json.dumps([code, out.getvalue(), err.getvalue()]))


def launch(folder: Path) -> None:
    """Start two processes as ``torchrun --standalone --nproc-per-node 2`` does, but forked off this one."""
    once = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "max_restarts": 0}
    meeting = {"run_id": folder.name, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    elastic_launch(LaunchConfig(**once, **meeting, start_method="fork", logs_specs=DefaultLogsSpecs()), both)(folder)


def both(place: Path) -> None:
    warnings.simplefilter("default")  # torch's own, of a model that is split
    for number, (name, (port, words)) in enumerate(json.loads((place / "commands.json").read_text()).items()):
        if number:
            os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        run([*words, "--seed", os.environ["RANK"]] if name == OWN_SEED else words, place / name)
