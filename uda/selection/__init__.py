"""Chooses pseudo-labels: angles, selectors, thresholds, regularisers."""
