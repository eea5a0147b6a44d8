#!/usr/bin/env python3
"""Self-training from a config: `python tools/self_train.py --cfg digits_avh.yaml [key=value ...]`."""

import sys

from uda.cli import main
from uda.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
