"""Hardness scores of images, and the classifiers that give them."""
