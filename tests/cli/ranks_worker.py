"""What `test_ranks` lets two processes do: ``ranks_worker.py FOLDER``, commands one after the other.

``FOLDER/commands.json`` holds each by its name, with a free port; it runs in ``FOLDER/NAME`` and leaves its exit code
and what it printed in ``said-RANK.json``. The first takes what torchrun has set up as it is.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from multiflow.cli import main

RANK = os.environ.get("RANK", "0")
OWN_SEED = "of another seed"


def run(words: list[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
    Path(f"said-{RANK}.json").write_text(json.dumps([code, out.getvalue(), err.getvalue()]))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for number, (name, (port, words)) in enumerate(json.loads((place / "commands.json").read_text()).items()):
        if number:
            os.environ.update(TORCHELASTIC_USE_AGENT_STORE="False", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        run([*words, "--seed", RANK] if name == OWN_SEED else words, place / name)
