#!/usr/bin/env python3
"""Domain generalisation, each domain left out in turn: `python tools/generalize.py --cfg pacs_avh_loss.yaml`."""

import sys

from uda.command_line import run_command
from uda.generalization.cli import main

if __name__ == "__main__":
    sys.exit(run_command(main))
