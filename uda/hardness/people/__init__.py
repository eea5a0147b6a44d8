"""Hardness for people, compared with the scores of models."""
