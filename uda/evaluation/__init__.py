"""How good a model is, with target labels and without."""
