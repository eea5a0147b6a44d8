"""The reports of a supervised training, which scores its test images after every epoch."""

import io
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from uda.core.files import write_bytes
from uda.evaluation.accuracy import Accuracy
from uda.hardness.dynamics.config import SupervisedConfig
from uda.hardness.dynamics.results import summarise
from uda.hardness.scoring.score_table import ScoreTable, write_scores
from uda.report.loggers import Loggers
from uda.report.run_record import RunRecord
from uda.report.run_report import RunReport
from uda.report.terminal import percent
from uda.training.pace import rough_duration
from uda.training.records import REPORTS, Records


class EpochReport(RunReport):
    """Writes `epochs/NN.json`, `epochs/NN.npz`, `tb/` and `report.html`, at the end `scores.csv` and `results.json`.

    Args:
        records: the run's records so far.
        config: the run's config.
        log: prints one line.
    """

    config: SupervisedConfig

    def __init__(self, records: Records, config: SupervisedConfig, log: Callable[[str], None]):
        super().__init__(records, config, log, len(records.reports()))
        self._reported: float | None = None
        self._seconds: list[float] = []

    def epoch(
        self, epoch: int, steps: int, loss: float | None, table: ScoreTable, reached: Accuracy, started: float
    ) -> None:
        """Report an epoch.

        Args:
            epoch: number of finished epochs; 0 for the untrained network.
            steps: number of finished training steps.
            loss: mean training loss of the epoch; None for the untrained network.
            table: scores of the test images.
            reached: accuracy on the test images.
            started: time at which scoring started, by `time.monotonic`.
        """
        means = {name: float(values.mean()) for name, values in table.scores.items()}
        record = {
            "epoch": epoch,
            "steps": steps,
            "train_loss": loss,
            "overall": reached.overall,
            "per_class": reached.per_class,
            "ece": reached.ece,
            "scores": means,
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, right=table.right, **table.scores)
        file = self.folder / REPORTS["epochs"].format(epoch)
        write_bytes(file.with_suffix(".npz"), buffer.getvalue())
        self.records.write(REPORTS["epochs"].format(epoch), record)
        if epoch == self.config.training.epochs:
            write_scores(table, self.folder / "scores.csv")
        self.draw(lambda events: _draw(events, record))
        self.write_page()
        now = time.monotonic()
        if self._reported is not None:
            self._seconds.append(now - self._reported)
        self._reported = now
        left = self.seconds_left
        told_left = "" if left is None else f", about {rough_duration(left)} left"
        told = "" if loss is None else f"training loss {loss:.3f}, "
        self.log(
            f"epoch {epoch:>3}  {told}test accuracy {percent(reached.overall)} %, AVH {means['avh']:.4f}, confidence "
            f"{means['confidence']:.3f}, norm {means['norm']:.2f}  (scored in {now - started:.0f} s{told_left})"
        )

    def parts(self) -> tuple[list[tuple[float, float]], list[float]]:
        """The epochs after the first one in this start. An epoch's record has no seconds."""
        epochs = len(self.records.reports()) - 1
        return [(1, seconds) for seconds in self._seconds], [1] * (self.config.training.epochs - epochs)

    def figures(self, results: Mapping[str, Any]) -> dict[str, float | None]:
        last = self.records.reports()[-1]
        return {"final/loss": last["train_loss"], "final/accuracy": last["overall"], "final/ece": last["ece"]}

    def summarise(self, seconds: float) -> dict[str, Any]:
        return summarise(self.config, self.records.reports(), seconds)

    def page(self, record: RunRecord) -> str:
        from uda.hardness.dynamics.page import supervised_page

        return supervised_page(record, self.config).render()


def _draw(events: Loggers, record: Mapping[str, Any]) -> None:
    """Log an epoch's figures."""
    step = record["epoch"]
    events.scalars(step, "train", {"loss": record["train_loss"]})
    events.scalars(step, "test", {"accuracy": record["overall"], **record["scores"]})
