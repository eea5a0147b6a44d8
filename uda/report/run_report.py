"""Base of the reports of all kinds of run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import softmax

from uda.core.errors import UserError
from uda.core.files import write_json, write_text
from uda.core.plain_text import WIDTH
from uda.data.images import Images
from uda.evaluation.per_image import per_image
from uda.models.network import Prediction
from uda.report import terminal
from uda.report.feature_map import places
from uda.report.image_table import ImageTable
from uda.report.loggers import Loggers
from uda.report.page import choose_pictures
from uda.report.pictures import PICTURES, Pictures, write_pictures
from uda.report.run_record import PAGE_COLUMNS, RunRecord, read_tables
from uda.training.config import RunConfig, flatten
from uda.training.pace import rough_duration, seconds_left
from uda.training.records import CHOICE, SOURCE, ZERO_SHOT, Records, plain, read_record
from uda.training.run_folder import RunLog


class RunReport(ABC):
    """Writes records, figures for loggers and rows in the terminal during a run, and `results.json` at the end.

    The `records` are its only state. A new report with the same records continues where the old one ended.

    Args:
        records: the records of the run so far.
        config: the run's config.
        log: prints one line.
        first_report: the first report to come. Loggers drop what an interrupted start has logged of it.
        images: the target images, for the pictures of the page.
    """

    labelled = True
    """Whether there are labels for oracle figures."""

    def __init__(
        self,
        records: Records,
        config: RunConfig,
        log: Callable[[str], None],
        first_report: int,
        images: Images | None = None,
    ):
        self.records = records
        self.folder = records.folder
        self.config = config
        self.log = log
        self._rows = 0
        self._page_fails = False
        self._tables: dict[str, ImageTable] = {}
        self._pictures = Pictures(images if images is not None and images.visible else None)
        self._first_report, self._first_step = first_report, 1
        self._loggers: Loggers | None = None

    def parts(self) -> tuple[Sequence[tuple[float, float]], Sequence[float]] | None:
        """Work and seconds of the parts that are reported, and the work of those to come; None if they are unknown."""
        return None

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds from the last report to the end of the run, by the run's own pace; None if unknown."""
        parts = self.parts()
        return None if parts is None else seconds_left(*parts)

    @abstractmethod
    def summarise(self, seconds: float) -> dict[str, Any]:
        """The content of `results.json` from the records of the whole run."""

    def page(self, record: RunRecord) -> str | None:
        """The content of `report.html`; None if this kind of run has no page."""
        return None

    def predicted_columns(self, prediction: Prediction, on_a_plane: bool = True) -> dict[str, np.ndarray]:
        """What tables of images tell of a prediction. `on_a_plane`: with the images' places by their features."""
        columns = dict(per_image(prediction))
        if on_a_plane:
            columns["x"], columns["y"] = places(prediction.features).T
        if self.config.report.features:
            columns |= {"features": prediction.features, "probabilities": softmax(prediction.logits, axis=1)}
        return columns

    def write_images(self, name: str, table: ImageTable) -> None:
        """Write a table of images, and keep what the page needs of it."""
        table.write(self.folder / name)
        if self.config.report.page:
            shown = {
                name: values.astype(np.int32) if values.dtype == np.int64 else values  # they are kept for all rounds
                for name, values in table.columns.items()
                if name in PAGE_COLUMNS
            }
            self._tables[name] = replace(table, columns=shown)

    def write_page(self, seconds: float | None = None, finished: bool = False, running: bool = True) -> None:
        """Write `report.html` from the records so far, if the config asks for it.

        A mistake in a page costs no training: it is logged once, and the run goes on.

        Args:
            seconds: duration of the run so far.
            finished: whether the run has ended.
            running: whether the run goes on.
        """
        if not self.config.report.page:
            return
        try:
            self._write_page(seconds, finished, running and not finished)
        except UserError:  # the disk is full
            raise
        except Exception as error:
            if not self._page_fails:
                told = f"{type(error).__name__}: {error}"
                self.log(f"warning: report.html cannot be made ({told}); please report this bug; the run goes on")
            self._page_fails = True

    def stopped(self) -> None:
        """Say on the page that the run is interrupted. Nothing is raised, because an error is on its way already."""
        with suppress(UserError):
            self.write_page(running=False)

    def _write_page(self, seconds: float | None, finished: bool, running: bool) -> None:
        record = RunRecord(
            self.folder,
            self.config.model_dump(mode="json"),
            environment=self._environment(),
            zero_shot=self.records.get(ZERO_SHOT),
            source=self.records.get(SOURCE),
            reports=self.records.reports(),
            choice=self.records.get(CHOICE),
            finished=finished,
            running=running,
            hurried=not finished,
            seconds=seconds,
            seconds_left=None if finished else self.seconds_left,
        )
        if seconds is None:
            reported = [report["seconds"] for report in record.models if "seconds" in report]
            record.seconds = sum(reported) if reported else None
        read_tables(record, self._tables)
        if self.config.report.gallery and record.last_table is not None:
            record.pictures = self._pictures.of(choose_pictures(record, self.config.report.gallery))
            write_pictures(self.folder / PICTURES, record.pictures, record.last_table.paths)
        if (page := self.page(record)) is not None:
            write_text(self.folder / "report.html", page)

    def _environment(self) -> dict[str, Any]:
        try:
            return read_record(self.folder / "environment.json")
        except UserError:  # a report without a run folder of its own
            return {}

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write `report.html` and `results.json`. Returns the results.

        Args:
            seconds: duration of the run.
        """
        results = plain(self.summarise(seconds))
        self.write_page(seconds, finished=True)
        write_json(self.folder / "results.json", results)
        self._end_logging(results)
        return results

    def start(self, first_step: int) -> None:
        """Begin to log, with the training step `first_step` to come, counted from 1. A new run logs its config."""
        self._first_step = first_step
        if self._first_report <= 0 and not self.records.state():
            config = f"```yaml\n{self.config.to_yaml()}```"
            self.draw(lambda loggers: loggers.text(self._first_report, "config", config))

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures of the training up to a step of the run."""
        self._all_loggers().training(step, values)

    def flush(self) -> None:
        """Make all loggers write what is pending."""
        self._all_loggers().flush()

    @property
    def logs(self) -> bool:
        """Whether there is a logger."""
        return bool(self._all_loggers())

    def figures(self, results: Mapping[str, Any]) -> dict[str, float | None]:
        """The final figures for loggers, by name. Those that need target labels begin with `oracle/`."""
        return {}

    def draw(self, figures: Callable[[Loggers], None]) -> None:
        """Log figures, if the config names a logger."""
        if self.logs:
            figures(self._all_loggers())
            self._all_loggers().flush()

    def _all_loggers(self) -> Loggers:
        if self._loggers is None:
            given = self.folder, self.config, self._first_report, self._first_step
            self._loggers = Loggers(self.config.report.loggers, self.log, *given)
        return self._loggers

    def _end_logging(self, results: Mapping[str, Any]) -> None:
        after_the_last = len(self.records.reports())
        self.draw(lambda loggers: loggers.hparams(after_the_last, settings_of(self.config), self.figures(results)))
        self._all_loggers().close()

    def print_row(self, columns: Sequence[terminal.Column], cells: Mapping[str, str]) -> None:
        """Print a row of the terminal's table, and the table's head before every tenth row."""
        begins = self._rows % terminal.HEADER_EVERY == 0
        self._rows += 1
        left = self.seconds_left
        cells = {**cells, "left": "" if left is None else rough_duration(left)}

        def lines(width: int) -> list[str]:
            fitting = terminal.fitting(columns, width, self.labelled)
            return [*(terminal.header(fitting) if begins else []), terminal.row(fitting, cells)]

        self.tell(lines)

    def tell(self, lines: Callable[[int], Iterable[str]]) -> None:
        """Log lines that depend on the width in columns."""
        if isinstance(self.log, RunLog):
            self.log.table(lines)
        else:
            for line in lines(WIDTH):
                self.log(line)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that define a run, by dotted key, for a table of runs."""
    skipped = tuple(f"{key}." for key in (*config.not_identity, "plugin_code") if key != "name")
    found = flatten(config.model_dump(mode="json"))
    return {key: value for key, value in found.items() if not f"{key}.".startswith(skipped)}
