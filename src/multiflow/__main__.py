"""``python -m multiflow``: the command line."""

import sys

from multiflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
