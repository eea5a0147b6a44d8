#!/usr/bin/env python3
"""Self-training from a config: `python tools/self_train.py --cfg digits_avh.yaml [key=value ...]`."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/self_train.py", "adapt"))
