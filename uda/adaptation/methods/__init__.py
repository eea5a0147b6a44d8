"""Methods: what is computed from a batch. The engine owns the loop, the devices and the checkpoints."""

from uda.adaptation.methods import (  # noqa: F401  (they register themselves)
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
