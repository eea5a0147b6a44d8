"""Hardness for people beside the scores of models."""
