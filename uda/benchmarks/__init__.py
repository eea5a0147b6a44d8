"""The benchmarks of tools/bench.py, a module a subject."""

from uda.benchmarks import files, network, selection  # noqa: F401  (they register themselves)
from uda.benchmarks.contest import BENCHMARKS, Contest

__all__ = ["BENCHMARKS", "Contest"]
