"""A check of a GPU, which takes some minutes. `uda check-device` runs it.

The parts run in the order of their registration. The most important parts come first, because the time may run out.
"""

from uda.device_check import training  # noqa: F401

# isort: split
from uda.device_check import runs  # noqa: F401

# isort: split
from uda.device_check import rates  # noqa: F401
from uda.device_check.parts import PARTS, Finding, Outcome, Setup, run_part
from uda.device_check.report import run_check

__all__ = ["PARTS", "Finding", "Outcome", "Setup", "run_check", "run_part"]
