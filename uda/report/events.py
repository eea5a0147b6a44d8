"""TensorBoard event files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


class Events:
    """Event files in `folder`. Nothing is imported or written before the first figure.

    Figures that need target labels are in groups that begin with `oracle`. `first_step`: events of older files from
    this step on are purged, so that a resumed run draws nothing twice.
    """

    def __init__(self, folder: Path, first_step: int):
        self.folder = folder
        self.first_step = first_step
        self._writer = None

    def scalars(self, step: int, group: str, values: Mapping[str, float | None]) -> None:
        """Write numbers as `group/name`. None values are skipped."""
        for name, value in values.items():
            if value is not None:
                self._open().add_scalar(f"{group}/{name}", value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text in Markdown."""
        self._open().add_text(name, text, step)

    def image(self, step: int, name: str, pixels: np.ndarray, dataformats: str = "CHW") -> None:
        """Write a uint8 image. `dataformats` is the order of its axes."""
        self._open().add_image(name, pixels, step, dataformats=dataformats)

    def flush(self) -> None:
        """Write all pending events to disk."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def _open(self):
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=self.first_step or None)
        return self._writer
