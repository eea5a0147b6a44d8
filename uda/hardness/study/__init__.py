"""The whole study in one command, and the publication of its results."""
