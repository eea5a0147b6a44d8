#!/usr/bin/env python3
"""Run a table's missing runs, add them to its CSV, write its Markdown and LaTeX: `python tools/table.py digits`."""

import sys

from uda.cli.main import run_tool

if __name__ == "__main__":
    sys.exit(run_tool("tools/table.py", "table"))
