"""TensorBoard: scalars, the confusion figure and a grid of chosen images, a step a round."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uda.data.images import Images

MOST_CLASSES = 40
GRID_SIDE = 96


class Events:
    """Event files in `folder`; nothing is imported or written before the first figure.

    Figures that need target labels stand under `oracle/`. `first_step`: what older event files hold from this step
    on is purged, so that a resumed run draws no round twice.
    """

    def __init__(self, folder: Path, first_step: int):
        self.folder = folder
        self.first_step = first_step
        self._writer = None

    def model(self, step: int, record: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Figures of the model after source training (step 0) or a round (step round + 1)."""
        self._scalars(step, "validator", record["validators"])
        self._scalars(step, "time", {"seconds": record["seconds"]})
        self._scalars(step, "train", {"loss": record.get("loss")})
        self._scalars(step, "predicted", {name: record.get(name) for name in ("effective_classes", "largest_share")})
        if record["warnings"]:
            self._open().add_text("warnings", "\n\n".join(record["warnings"]), step)
        accuracy = record["accuracy"]
        if accuracy is None:
            return
        self._scalars(step, "oracle", {name: accuracy[name] for name in ("class_mean", "overall", "ece", "nll")})
        domains = accuracy.get("domains") or {}
        self._scalars(step, "oracle_domain", {name: figures["class_mean"] for name, figures in domains.items()})
        self._scalars(step, "oracle_unknown", accuracy.get("unknown") or {})
        if len(classes) <= MOST_CLASSES:
            self._scalars(step, "oracle_class", accuracy["per_class"])
        from uda.report.figures import confusion_figure, to_rgb

        figure = confusion_figure(accuracy["confusion"], classes)
        self._open().add_image("oracle/confusion", to_rgb(figure), step, dataformats="HWC")

    def choice(self, step: int, record: Mapping[str, Any], images: Images, chosen: Sequence[int]) -> None:
        """Figures of a round's choice, and the images at `chosen`."""
        names = ("portion", "selected", "avh", "avc", "confidence", "feature_norm")
        self._scalars(step, "selection", {name: record[name] for name in names})
        overlap = record["overlap"]
        self._scalars(step, "selection", {"jaccard_with_softmax": overlap["jaccard"]})
        oracle = {name: overlap[name] for name in ("tp_rate_only_selector", "tp_rate_only_softmax")}
        self._scalars(step, "oracle", {"tp_rate": record["tp_rate"], **oracle})
        if len(record["lambda"]) <= MOST_CLASSES:
            self._scalars(step, "lambda", record["lambda"])
            self._scalars(step, "selected", record["selected_per_class"])
        if chosen:
            self._open().add_image("selection/surest_of_each_class", _grid(images, chosen), step)

    def flush(self) -> None:
        """Bring all that was written to disk."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def _open(self):
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self.first_step or None)
        return self._writer

    def _scalars(self, step: int, group: str, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self._open().add_scalar(f"{group}/{name}", value, step)


def _grid(images: Images, indices: Sequence[int]):
    """Images scaled to one size, eight in a row: uint8 tensor (3, H, W)."""
    import torch
    from torchvision.transforms.v2 import functional
    from torchvision.utils import make_grid

    pictures = [functional.resize(images.read(index), [GRID_SIDE, GRID_SIDE], antialias=True) for index in indices]
    pictures = [picture.expand(3, -1, -1) if len(picture) == 1 else picture for picture in pictures]
    return make_grid(torch.stack(pictures), nrow=8, pad_value=255)
