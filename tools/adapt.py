#!/usr/bin/env python3
"""Any method from a config: `python tools/adapt.py --cfg digits_mcd.yaml [key=value ...]`. As tools/self_train.py."""

import sys

from uda.cli import main
from uda.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(program="adapt.py")))
