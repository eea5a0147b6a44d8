"""Semantic segmentation: a class for every pixel, adapted to an unlabelled target by self-training."""
