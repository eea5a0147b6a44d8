#!/usr/bin/env python3
"""Check this machine's GPU: `python tools/check_device.py --json check.json`."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/check_device.py", "check-device"))
