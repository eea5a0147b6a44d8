"""`python -m uda` is the `uda` command."""

import sys

from uda.cli.main import main

if __name__ == "__main__":
    sys.exit(main(program="python -m uda"))
