"""Measurements beside the package: speed (`uda bench`, one module per subject), scaling, chaos, processes."""

from benchmarks import (  # noqa: F401  (they register themselves)
    averaging,
    banks,
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
from benchmarks.contest import BENCHMARKS, Contest

__all__ = ["BENCHMARKS", "Contest"]
