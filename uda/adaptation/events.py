"""TensorBoard events of an adaptation, one step per round: scalars, confusion matrix, a grid of selected images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from uda.data.images import Images
from uda.report.events import Events

MOST_CLASSES = 40
GRID_SIDE = 96


def draw_model(events: Events, step: int, record: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Figures of the model after source training (step 0) or a round (step round + 1)."""
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
    from uda.report.figures import confusion_figure, to_rgb

    events.image(step, "oracle/confusion", to_rgb(confusion_figure(accuracy["confusion"], classes)), "HWC")


def draw_selection(events: Events, step: int, record: Mapping[str, Any], images: Images, chosen: Sequence[int]) -> None:
    """Figures of the images that a round selected, and a grid of the images at `chosen`."""
    names = ("portion", "selected", "avh", "avc", "confidence", "feature_norm")
    events.scalars(step, "selection", {name: record[name] for name in names})
    overlap = record["overlap"]
    events.scalars(step, "selection", {"jaccard_with_softmax": overlap["jaccard"]})
    oracle = {name: overlap[name] for name in ("tp_rate_only_selector", "tp_rate_only_softmax")}
    events.scalars(step, "oracle", {"tp_rate": record["tp_rate"], **oracle})
    if len(record["lambda"]) <= MOST_CLASSES:
        events.scalars(step, "lambda", record["lambda"])
        events.scalars(step, "selected", record["selected_per_class"])
    if chosen:
        events.image(step, "selection/surest_of_each_class", _grid(images, chosen).numpy())


def _grid(images: Images, indices: Sequence[int]) -> Tensor:
    """Grid of images, scaled to one size, eight per row: uint8 (3, H, W)."""
    from torchvision.transforms.v2 import functional
    from torchvision.utils import make_grid

    pictures = [functional.resize(images.read(index), [GRID_SIDE, GRID_SIDE], antialias=True) for index in indices]
    pictures = [picture.expand(3, -1, -1) if len(picture) == 1 else picture for picture in pictures]
    return make_grid(torch.stack(pictures), nrow=8, pad_value=255)
