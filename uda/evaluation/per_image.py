"""Figures of single images by a prediction: the predicted class, its probability, angles and the feature's norm."""

import numpy as np
import torch

from uda.evaluation.validators import CHUNK_ENTRIES, log_softmax
from uda.models.network import Prediction
from uda.selection.angular import avc, avh


def per_image(prediction: Prediction, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Figures of each image, computed in chunks so that memory stays bounded.

    Args:
        prediction: N images, K classes.
        labels: (N,) class numbers that AVC and AVH refer to. None: the predicted classes.

    Returns:
        Arrays (N,): `prediction` (int64, the class of the largest logit), and as float32 `probability` (largest
        softmax), `avc` and `avh` (Chen et al., ICML 2020) of the label, `norm` (|x|_2).
    """
    count = len(prediction.logits)
    predicted = prediction.logits.argmax(1)
    labels = predicted if labels is None else np.asarray(labels, np.int64)
    found = {name: np.empty(count, np.float32) for name in ("probability", "avc", "avh", "norm")}
    weight = torch.from_numpy(np.asarray(prediction.weight))
    step = max(1, CHUNK_ENTRIES // max(1, prediction.logits.shape[1], prediction.features.shape[1]))
    for start in range(0, count, step):
        rows = slice(start, start + step)
        features = torch.from_numpy(np.ascontiguousarray(prediction.features[rows]))
        own = torch.from_numpy(np.ascontiguousarray(labels[rows]))
        found["avh"][rows] = avh(features, weight, own).numpy()
        found["avc"][rows] = avc(features, weight).gather(1, own[:, None])[:, 0].numpy()
        found["norm"][rows] = features.norm(dim=1).numpy()
    for rows, log_p in log_softmax(prediction.logits):
        found["probability"][rows] = np.exp(log_p.max(1))
    return {"prediction": predicted, **found}
