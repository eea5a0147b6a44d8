"""Experiments on trained classifiers: degraded images, adversarial paths, the toy of two dimensions."""
