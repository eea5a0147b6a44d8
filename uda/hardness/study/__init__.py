"""The whole study in one command, and its published figures."""
