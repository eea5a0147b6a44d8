#!/usr/bin/env python3
"""Domain generalisation, each domain left out in turn: `python tools/generalize.py --cfg pacs_avh_loss.yaml`."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/generalize.py", "generalize"))
