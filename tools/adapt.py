#!/usr/bin/env python3
"""Any method from a config: `python tools/adapt.py --cfg digits_mcd.yaml [key=value ...]`. As tools/self_train.py."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/adapt.py", "adapt"))
