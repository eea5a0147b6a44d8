"""Evaluation of models, with and without target labels."""
