#!/usr/bin/env python3
"""Adaptation from a config, as tools/self_train.py: `python tools/adapt.py --cfg digits_mcd.yaml [key=value ...]`."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/adapt.py", "adapt"))
