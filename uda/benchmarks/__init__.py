"""The benchmarks of tools/bench.py, a module a subject."""

from uda.benchmarks import network, saving, selection, start_up, thresholds  # noqa: F401  (they register themselves)
from uda.benchmarks.contest import BENCHMARKS, Contest

__all__ = ["BENCHMARKS", "Contest"]
