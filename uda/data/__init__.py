"""Reads images from folders, list files and cards, and makes training batches of them."""
