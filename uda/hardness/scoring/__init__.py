"""Hardness scores of images, and the classifiers that produce them."""
