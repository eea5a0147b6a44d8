"""uda: unsupervised domain adaptation by self-training."""

__version__ = "0.1.0"
