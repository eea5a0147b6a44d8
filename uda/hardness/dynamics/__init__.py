"""Supervised training that records hardness after every epoch."""
