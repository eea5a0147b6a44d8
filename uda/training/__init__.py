"""Training: the one loop and predict pass, optimisers, the state of a run and its folder."""
