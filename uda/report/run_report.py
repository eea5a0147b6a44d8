"""Base of the reports of all kinds of run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uda.core.files import OutputError, write_json, write_text
from uda.report import terminal
from uda.report.events import Events
from uda.training.config import RunConfig
from uda.training.records import Records, plain


class RunReport(ABC):
    """Writes records, TensorBoard and rows in the terminal during a run, and `results.json` at the end.

    The `records` are its only state. A new report with the same records continues where the old one ended.

    Args:
        records: the records of the run so far.
        config: the run's config.
        log: prints one line.
        first_step: TensorBoard events from this step on are purged, so that nothing is drawn twice.
    """

    def __init__(self, records: Records, config: RunConfig, log: Callable[[str], None], first_step: int):
        self.records = records
        self.folder = records.folder
        self.config = config
        self.log = log
        self._rows = 0
        self._events = Events(self.folder / "tb", first_step) if config.report.tensorboard else None

    @abstractmethod
    def summarise(self, seconds: float) -> dict[str, Any]:
        """The content of `results.json` from the records of the whole run."""

    def page(self, results: Mapping[str, Any]) -> str | None:
        """The content of `report.html`; None if this kind of run has no page."""
        return None

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write `report.html` and `results.json`. Returns the results.

        Args:
            seconds: duration of the run.
        """
        results = plain(self.summarise(seconds))
        if self.config.report.page and (page := self.page(results)) is not None:
            write_text(self.folder / "report.html", page)
        write_json(self.folder / "results.json", results)
        self.draw(Events.close)
        return results

    def draw(self, figures: Callable[[Events], None]) -> None:
        """Write figures for TensorBoard, if the config asks for them.

        TensorBoard writes in a thread, so a full disk raises OutputError in one of the next calls.
        """
        if self._events is None:
            return
        try:
            figures(self._events)
            self._events.flush()
        except OSError as error:
            raise OutputError(self._events.folder, error) from error

    def print_row(self, columns: Sequence[terminal.Column], cells: Mapping[str, str]) -> None:
        """Print a row of the terminal's table, and the table's head before every tenth row."""
        if self._rows % terminal.HEADER_EVERY == 0:
            for line in terminal.header(columns):
                self.log(line)
        self._rows += 1
        self.log(terminal.row(columns, cells))
