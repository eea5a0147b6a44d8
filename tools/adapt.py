#!/usr/bin/env python3
"""Any method from a config: `python tools/adapt.py --cfg digits_mcd.yaml [key=value ...]`. As tools/self_train.py."""

import sys

from uda.cli import main

if __name__ == "__main__":
    sys.exit(main(program="adapt.py"))
