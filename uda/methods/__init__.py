"""Methods: what is computed from a batch. The engine owns the loop, the devices and the checkpoints."""

from uda.losses import UNLABELLED_LOSSES
from uda.methods import (  # noqa: F401  (they register themselves)
    adr,
    cdan,
    dann,
    entmin,
    fixmatch,
    mcc,
    mcd,
    mmd,
    self_training,
    shot,
    source_only,
)
from uda.methods.base import METHODS, Method, Optimizer, check_batch

__all__ = ["METHODS", "UNLABELLED_LOSSES", "Method", "Optimizer", "check_batch"]
