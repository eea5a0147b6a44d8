#!/usr/bin/env python3
"""Compare a data set on disk with its card: `python tools/check_data.py visda2017 [--root DIR]`."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/check_data.py", "check-data"))
