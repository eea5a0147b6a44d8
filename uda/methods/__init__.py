"""Methods: what is computed from a batch. The engine owns the loop, the devices and the checkpoints."""

from uda.methods import self_training, source_only  # noqa: F401  (they register themselves)
from uda.methods.base import METHODS, Method, Optimizer

__all__ = ["METHODS", "Method", "Optimizer"]
