"""``python -m multiflow``: the command line; ``torchrun -m multiflow`` runs it in several processes."""

import os
import sys

from multiflow.cli import main

if __name__ == "__main__":
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from multiflow.base.parallel import leave

        leave(code)
    sys.exit(code)
