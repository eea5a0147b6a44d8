"""What the reports of all kinds of run share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uda.core.files import OutputError, write_json, write_text
from uda.report import terminal
from uda.report.events import Events
from uda.training.config import RunConfig
from uda.training.records import Records, plain


class RunReport(ABC):
    """Writes what a run has come to as it goes: records, TensorBoard, rows in the terminal; `results.json` at the end.

    `records` are all its state. A report made anew with the same records goes on where the old one ended.

    Args:
        records: those of the run so far.
        config: the run's config.
        log: prints one line.
        first_step: what TensorBoard's files hold from this step on is purged, so that nothing is drawn twice.
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
        """The content of `report.html`; None for a kind of run that has no page."""
        return None

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write `report.html` and `results.json`. Returns the results.

        Args:
            seconds: how long the run took.
        """
        results = plain(self.summarise(seconds))
        if self.config.report.page and (page := self.page(results)) is not None:
            write_text(self.folder / "report.html", page)
        write_json(self.folder / "results.json", results)
        self.draw(Events.close)
        return results

    def draw(self, figures: Callable[[Events], None]) -> None:
        """Write figures for TensorBoard, where the config wants them.

        TensorBoard writes in a thread, so a full disk shows at one of the next calls. Raises OutputError then.
        """
        if self._events is None:
            return
        try:
            figures(self._events)
            self._events.flush()
        except OSError as error:
            raise OutputError(self._events.folder, error) from error

    def print_row(self, columns: Sequence[terminal.Column], cells: Mapping[str, str]) -> None:
        """Print a row of the terminal's table, and the table's head before every tenth."""
        if self._rows % terminal.HEADER_EVERY == 0:
            for line in terminal.header(columns):
                self.log(line)
        self._rows += 1
        self.log(terminal.row(columns, cells))
