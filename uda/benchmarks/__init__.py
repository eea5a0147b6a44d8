"""The benchmarks of tools/bench.py, a module a subject."""

from uda.benchmarks import (  # noqa: F401  (they register themselves)
    averaging,
    files,
    generalization,
    handover,
    methods,
    network,
    saving,
    selection,
    start_up,
    thresholds,
)
from uda.benchmarks.contest import BENCHMARKS, Contest

__all__ = ["BENCHMARKS", "Contest"]
