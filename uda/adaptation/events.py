"""What an adaptation tells its loggers: scalars, distributions, a confusion matrix, images, features."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uda.data.images import Images
from uda.models.network import Prediction
from uda.report.loggers import Loggers
from uda.selection.angular import avh
from uda.selection.thresholds import PseudoLabels

MOST_CLASSES = 40
GRID_SIDE, SPRITE_SIDE = 96, 32
#: Most images of the distribution of AVH, and most images and numbers of each in the embedding.
MOST_MEASURED, MOST_EMBEDDED, MOST_COMPONENTS = 20_000, 400, 50


def draw_model(events: Loggers, step: int, record: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Figures of the model after source training (step -1) or a round (its number)."""
    events.scalars(step, "validator", record["validators"])
    events.scalars(step, "time", {"seconds": record["seconds"]})
    events.scalars(step, "train", {"loss": record.get("loss")})
    events.scalars(step, "predicted", {name: record.get(name) for name in ("effective_classes", "largest_share")})
    if record["warnings"]:
        events.text(step, "warnings", "\n\n".join(record["warnings"]))
    accuracy = record["accuracy"]
    if accuracy is None:
        return
    events.scalars(step, "oracle", {name: accuracy[name] for name in ("class_mean", "overall", "ece", "nll")})
    domains = accuracy.get("domains") or {}
    events.scalars(step, "oracle_domain", {name: figures["class_mean"] for name, figures in domains.items()})
    events.scalars(step, "oracle_unknown", accuracy.get("unknown") or {})
    if len(classes) <= MOST_CLASSES:
        events.scalars(step, "oracle_class", accuracy["per_class"])
    if events.take("image"):
        from uda.report.figures import confusion_pixels

        events.image(step, "oracle/confusion", confusion_pixels(accuracy["confusion"], classes))


def draw_target(events: Loggers, step: int, prediction: Prediction) -> None:
    """The distribution of AVH, of the predicted class, over the target images."""
    if events.take("histogram"):
        rows = spread_over(len(prediction.logits), MOST_MEASURED)
        features, logits, weight = prediction.features[rows], prediction.logits[rows], prediction.weight
        hardness = avh(torch.from_numpy(features), torch.from_numpy(weight), torch.from_numpy(logits.argmax(1)))
        events.histogram(step, "target/avh", hardness.numpy())


def draw_embedding(
    events: Loggers,
    step: int,
    prediction: Prediction,
    images: Images,
    classes: Sequence[str],
    truth: np.ndarray | None,
) -> None:
    """Features of some target images, with their predicted classes, names and, if known, true classes (oracle)."""
    if not events.take("embedding"):
        return
    rows = spread_over(len(images), MOST_EMBEDDED)
    columns = {
        "predicted": [classes[k] for k in prediction.logits[rows].argmax(1)],
        "image": [images.ids[row] for row in rows],
    }
    if truth is not None:
        columns["true class (oracle)"] = [classes[k] if k >= 0 else "unknown" for k in truth[rows]]
    features = main_components(prediction.features[rows], MOST_COMPONENTS)
    pictures = None
    if images.visible:
        pictures = torch.stack([_square(images, row, SPRITE_SIDE) for row in rows]).permute(0, 2, 3, 1).numpy()
    events.embedding(step, "target", features, columns, pictures)


def spread_over(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` rows, evenly spread. Nothing is drawn, so no generator changes."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def main_components(features: np.ndarray, most: int) -> np.ndarray:
    """The first principal components of features: (N, D) -> (N, at most `most`)."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    if centred.shape[1] <= most:
        return centred
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :most] * lengths[:most]


def draw_selection(
    events: Loggers,
    step: int,
    record: Mapping[str, Any],
    pseudo: PseudoLabels,
    images: Images,
    chosen: Sequence[int],
) -> None:
    """Figures of the images that a round selected, and a grid of the images at `chosen`."""
    names = ("portion", "selected", "avh", "avc", "confidence", "feature_norm")
    events.scalars(step, "selection", {name: record[name] for name in names})
    events.histogram(step, "selection/scores", pseudo.scores[pseudo.selected])
    overlap = record["overlap"]
    events.scalars(step, "selection", {"jaccard_with_softmax": overlap["jaccard"]})
    oracle = {name: overlap[name] for name in ("tp_rate_only_selector", "tp_rate_only_softmax")}
    events.scalars(step, "oracle", {"tp_rate": record["tp_rate"], **oracle})
    if len(record["lambda"]) <= MOST_CLASSES:
        events.scalars(step, "lambda", record["lambda"])
        events.scalars(step, "selected", record["selected_per_class"])
    if chosen and images.visible and events.take("image"):
        events.image(step, "selection/surest_of_each_class", _grid(images, chosen).permute(1, 2, 0).numpy())


def _grid(images: Images, indices: Sequence[int]) -> Tensor:
    """Grid of images, scaled to one size, eight per row: uint8 (3, H, W)."""
    from torchvision.utils import make_grid

    return make_grid(torch.stack([_square(images, index, GRID_SIDE) for index in indices]), nrow=8, pad_value=255)


def _square(images: Images, index: int, side: int) -> Tensor:
    """An image in colour, scaled to a square: uint8 (3, side, side)."""
    from torchvision.transforms.v2 import functional

    picture = functional.resize(images.read(int(index)), [side, side], antialias=True)
    return picture.expand(3, -1, -1) if len(picture) == 1 else picture
