#!/usr/bin/env python3
"""The study of visual hardness: `python tools/hardness.py score --model MODEL --data DATA`."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/hardness.py", "hardness"))
