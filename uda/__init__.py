"""uda: unsupervised domain adaptation by self-training."""

from uda.version import __version__

__all__ = ["__version__"]
