"""Experiments with classifiers: degraded images, adversarial paths, and the toy with two-dimensional features."""
