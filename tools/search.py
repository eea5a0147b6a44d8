#!/usr/bin/env python3
"""Search of settings: `python tools/search.py --cfg digits_avh.yaml --space digits --trials 20 [key=value ...]`."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/search.py", "search"))
