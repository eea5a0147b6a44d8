"""Loggers: where the figures of a run go while it runs. TensorBoard is one, a plugin may register others."""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from uda.core.errors import UserError
from uda.core.files import OutputError, write_bytes, write_text
from uda.core.registry import Registry
from uda.training.config import RunConfig

#: Step of the source model, which comes before round 0.
SOURCE_STEP = -1
#: Step of the untouched network with the class vectors of `model.classifier`, which comes before the source model.
ZERO_SHOT_STEP = -2


class Logger:
    """Base of loggers. Every method may be left out.

    There are two axes. Figures of reports stand at the number of the round, report or epoch, as in report.html. The
    source model stands at -1, and the untouched network with the class vectors of `model.classifier` at -2. Figures of
    training stand at the number of finished training steps of the whole run.

    Groups that begin with `oracle` need target labels.

    Args:
        folder: the run folder.
        config: the run's config.
        first_report: the first report to come. An interrupted start may have logged it and later ones already; a
            logger that keeps figures in files should drop those.
        first_step: the first training step to come, counted from 1. Likewise.
    """

    def __init__(self, folder: Path, config: RunConfig, first_report: int, first_step: int):
        self.folder, self.config = folder, config

    def scalars(self, report: int, group: str, values: Mapping[str, float]) -> None:
        """Numbers of a report."""

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of the training up to a step, by names such as `training/loss` and `learning_rate/backbone`."""

    def text(self, report: int, name: str, text: str) -> None:
        """A text in Markdown."""

    def image(self, report: int, name: str, pixels: np.ndarray) -> None:
        """A picture, uint8 (H, W, 3)."""

    def histogram(self, report: int, name: str, values: np.ndarray) -> None:
        """The distribution of numbers (N,)."""

    def embedding(
        self,
        report: int,
        name: str,
        features: np.ndarray,
        columns: Mapping[str, Sequence[str]],
        images: np.ndarray | None,
    ) -> None:
        """Points: features (N, D), N texts by column, and pictures, uint8 (N, side, side, 3) or None."""

    def hparams(self, report: int, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """At the end of the run: its settings by dotted key, and its final figures. `report` is after the last one."""

    def flush(self) -> None:
        """Write what is pending. It is called after every report."""

    def close(self) -> None:
        """The run has ended."""


#: Loggers by the names that `report.loggers` has.
LOGGERS: Registry[type[Logger]] = Registry("logger")


class Loggers:
    """The loggers of a run as one.

    A logger that fails is left out from then on, with one warning, because a run must not end for it. Only a UserError
    ends the run, such as TensorBoard's on a full disk.

    Args:
        names: names in LOGGERS.
        warn: receives a warning.
        others: the arguments of every logger.
    """

    def __init__(self, names: Sequence[str], warn: Callable[[str], None], *others: Any):
        self._warn = warn
        self._loggers: dict[str, Logger] = {}
        for name in names:
            kind = LOGGERS[name]
            with self._harmless(name):
                self._loggers[name] = kind(*others)

    def __bool__(self) -> bool:
        return bool(self._loggers)

    def take(self, what: str) -> bool:
        """Whether a logger has the method `what`. Without one, what it would get need not be computed."""
        return any(getattr(type(logger), what) is not getattr(Logger, what) for logger in self._loggers.values())

    def scalars(self, report: int, group: str, values: Mapping[str, float | None]) -> None:
        """As `Logger.scalars`. None and NaN are skipped."""
        self._each("scalars", report, group, _known(values))

    def training(self, step: int, values: Mapping[str, float | None]) -> None:
        """As `Logger.training`. None and NaN are skipped."""
        self._each("training", step, _known(values))

    def text(self, report: int, name: str, text: str) -> None:
        """As `Logger.text`."""
        self._each("text", report, name, text)

    def image(self, report: int, name: str, pixels: np.ndarray) -> None:
        """As `Logger.image`."""
        self._each("image", report, name, pixels)

    def histogram(self, report: int, name: str, values: np.ndarray) -> None:
        """As `Logger.histogram`. Without a finite number nothing is logged."""
        values = np.asarray(values)[np.isfinite(values)]
        if len(values):
            self._each("histogram", report, name, values)

    def embedding(self, *arguments: Any) -> None:
        """As `Logger.embedding`."""
        self._each("embedding", *arguments)

    def hparams(self, report: int, settings: Mapping[str, Any], figures: Mapping[str, float | None]) -> None:
        """As `Logger.hparams`. Figures that are None or NaN are skipped."""
        self._each("hparams", report, settings, _known(figures))

    def flush(self) -> None:
        """As `Logger.flush`."""
        self._each("flush")

    def close(self) -> None:
        """As `Logger.close`. Nothing is logged afterwards."""
        self._each("close")
        self._loggers.clear()

    def _each(self, what: str, *arguments: Any) -> None:
        for name, logger in list(self._loggers.items()):
            with self._harmless(name):
                getattr(logger, what)(*arguments)

    @contextmanager
    def _harmless(self, name: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a user's code, or a network
            self._loggers.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._warn(f"warning: logger '{name}' failed and gets no more figures until the next start: {reason}")


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None and not math.isnan(value)}


@LOGGERS.register("tensorboard")
class TensorBoard(Logger):
    """Event files in the run folder: tb/ by round, tb/training/ by training step.

    TensorBoard purges events by one axis per folder, so each axis has its own. It sorts groups by name, so the oracle
    groups are called `z_oracle...` here and come last.
    """

    def __init__(self, folder: Path, config: RunConfig, first_report: int, first_step: int):
        super().__init__(folder, config, first_report, first_step)
        self.folder = folder / "tb"
        self._begin = {self.folder: first_report, self.folder / "training": first_step}
        self._writers: dict[Path, Any] = {}

    def scalars(self, report: int, group: str, values: Mapping[str, float]) -> None:
        with self._writing() as writer:
            for name, value in values.items():
                writer.add_scalar(_last_if_oracle(f"{group}/{name}"), value, report)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        with self._writing("training") as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

    def text(self, report: int, name: str, text: str) -> None:
        with self._writing() as writer:
            writer.add_text(_last_if_oracle(name), text, report)

    def image(self, report: int, name: str, pixels: np.ndarray) -> None:
        with self._writing() as writer:
            writer.add_image(_last_if_oracle(name), pixels, report, dataformats="HWC")

    def histogram(self, report: int, name: str, values: np.ndarray) -> None:
        with self._writing() as writer:
            writer.add_histogram(_last_if_oracle(name), values, report)

    def embedding(
        self,
        report: int,
        name: str,
        features: np.ndarray,
        columns: Mapping[str, Sequence[str]],
        images: np.ndarray | None,
    ) -> None:
        """Files for the projector. `SummaryWriter.add_embedding` would add them once more after every resume."""
        folder = self.folder / "embedding"
        write_text(folder / "tensors.tsv", "".join("\t".join(f"{x:.5g}" for x in row) + "\n" for row in features))
        rows = list(zip(*columns.values(), strict=True))
        if len(columns) > 1:  # the projector takes the first line of several columns for their names
            rows.insert(0, tuple(columns))
        lines = ["\t".join(" ".join(str(text).split()) or "-" for text in row) for row in rows]
        write_text(folder / "metadata.tsv", "".join(f"{line}\n" for line in lines))
        sprite = ""
        if images is not None:
            write_bytes(folder / "sprite.png", _sprite(images))
            side = f"    single_image_dim: {images.shape[1]}\n"
            sprite = f'  sprite {{\n    image_path: "embedding/sprite.png"\n{side}{side}  }}\n'
        write_text(
            self.folder / "projector_config.pbtxt",
            f'embeddings {{\n  tensor_name: "{name}"\n  tensor_path: "embedding/tensors.tsv"\n'
            f'  metadata_path: "embedding/metadata.tsv"\n{sprite}}}\n',
        )

    def hparams(self, report: int, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """`SummaryWriter.add_hparams` would begin a run of its own beside this one."""
        from torch.utils.tensorboard.summary import hparams

        plain = (bool, int, float, str)
        shown = {key: value if isinstance(value, plain) else str(value) for key, value in settings.items()}
        metrics = {_last_if_oracle(name): value for name, value in figures.items()}
        with self._writing() as writer:
            for summary in hparams(shown, metrics):
                writer.file_writer.add_summary(summary, report)
            for name, value in metrics.items():
                writer.add_scalar(name, value, report)

    def flush(self) -> None:
        with self._errors():
            for writer in self._writers.values():
                writer.flush()

    def close(self) -> None:
        with self._errors():
            for writer in self._writers.values():
                writer.close()
        self._writers.clear()

    @contextmanager
    def _writing(self, below: str = "") -> Iterator[Any]:
        """The writer of a folder. Nothing is imported or written before the first figure."""
        folder = self.folder / below
        with self._errors():
            if folder not in self._writers:
                from torch.utils.tensorboard import SummaryWriter

                # Events from the first step to come on are of an interrupted start.
                purge = self._begin[folder] if any(folder.glob("events.*")) else None
                self._writers[folder] = SummaryWriter(str(folder), purge_step=purge)
                self._writers[folder]._get_file_writer()
            yield self._writers[folder]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """TensorBoard writes in a thread, so a full disk raises its error in one of the next calls."""
        try:
            yield
        except OSError as error:
            raise OutputError(self.folder, error) from error


def _last_if_oracle(name: str) -> str:
    return f"z_{name}" if name.startswith("oracle") else name


def _sprite(images: np.ndarray) -> bytes:
    """Images (N, side, side, 3) as one square PNG, row by row, as the projector wants them."""
    from PIL import Image

    count, side = images.shape[:2]
    across = math.ceil(math.sqrt(count))
    whole = np.zeros((across * side, across * side, 3), np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, across)
        whole[row * side : (row + 1) * side, column * side : (column + 1) * side] = image
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, format="PNG")
    return buffer.getvalue()
