#!/usr/bin/env python3
"""Compute the features of every image once: `python tools/bank.py --cfg pacs_avh.yaml`."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/bank.py", "bank"))
