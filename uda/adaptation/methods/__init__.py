"""Adaptation methods. A method computes losses of a batch; the engine owns the loop, devices and checkpoints."""

from uda.adaptation.methods import (  # noqa: F401  (the modules register their methods)
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
from uda.adaptation.methods.base import ADAPTATION_METHODS, AdaptationMethod
from uda.adaptation.methods.unlabelled_losses import UNLABELLED_LOSSES

__all__ = ["ADAPTATION_METHODS", "UNLABELLED_LOSSES", "AdaptationMethod"]
