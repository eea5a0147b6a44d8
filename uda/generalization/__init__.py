"""Domain generalisation: train on several domains, test on an unseen domain."""
