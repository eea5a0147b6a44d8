"""Training: the training loop and predict pass, optimisers, checkpoints and the run folder."""
