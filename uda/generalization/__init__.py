"""Domain generalisation: train on several domains, test on one that was never seen."""
