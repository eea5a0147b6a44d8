"""Features, logits and class weights that no network has made."""

import numpy as np

from uda.models.network import Prediction


def random_prediction(seed: int, count: int = 300, classes: int = 6, width: int = 8) -> Prediction:
    """Noisy features around class weights of unequal norms, and the logits of a linear classifier with biases."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((classes, width)) * rng.uniform(0.5, 2, (classes, 1))
    features = weight[rng.integers(0, classes, count)] + 1.2 * rng.standard_normal((count, width))
    logits = 0.2 * features @ weight.T + 0.3 * rng.standard_normal(classes)
    return Prediction(*(array.astype(np.float32) for array in (features, logits, weight)))
