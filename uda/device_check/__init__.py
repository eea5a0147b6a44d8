"""A check of one device, minutes long: what only a real GPU can show. `uda check-device` runs it.

Its parts run in the order in which they register: what matters most comes first, as the time may run out.
"""

from uda.device_check import training  # noqa: F401

# isort: split
from uda.device_check import runs  # noqa: F401

# isort: split
from uda.device_check import rates  # noqa: F401
from uda.device_check.parts import PARTS, Finding, Outcome, Setup, run_part
from uda.device_check.report import run_check

__all__ = ["PARTS", "Finding", "Outcome", "Setup", "run_check", "run_part"]
