"""Choosing pseudo-labels: angles, selectors, thresholds, regularisers."""
