"""Supervised training that records hardness, epoch by epoch."""
