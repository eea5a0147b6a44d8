#!/usr/bin/env python3
"""The study of visual hardness: `python tools/hardness.py score --model MODEL --data DATA`."""

import sys

from uda.command_line import run_command
from uda.hardness.cli import main

if __name__ == "__main__":
    sys.exit(run_command(main))
