"""The report of a run as it goes: called once after source training, once a round, once at the end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uda.atomic import OutputError, write_json, write_text
from uda.config import Config
from uda.data.domains import TargetLabels
from uda.data.images import Images
from uda.evaluation import Accuracy
from uda.methods import METHODS
from uda.report import records, table
from uda.report.events import Events
from uda.report.gallery import gallery_entries, surest_by_class
from uda.report.results import summarise
from uda.thresholds import PseudoLabels


@dataclass(frozen=True)
class ChoiceRecord:
    """What a round of self-training chose, and from what."""

    portion: float
    """Share of each class's images that was to be chosen."""
    pseudo: PseudoLabels
    """The selector's choice."""
    reference: PseudoLabels
    """What softmax would have chosen at the same portion."""
    metrics: dict[str, Any]
    """`uda.evaluation.selection_metrics` of the choice."""


@dataclass(frozen=True)
class RoundRecord:
    """A round, or an interval of a method without rounds, and what came of it."""

    round: int
    """Number of the round, from 0."""
    steps: int
    """Training steps since the stage began: a round is a stage of its own, an interval a part of one."""
    accuracy: Accuracy | None
    """Oracle: after the round's training; None without target labels."""
    validators: dict[str, float]
    """Label-free scores of the prediction after the round."""
    loss: float
    """Mean training loss of the round."""
    seconds: float
    """How long the round took."""
    choice: ChoiceRecord | None = None
    """What was chosen; None for a method that chooses nothing."""


class RunReport:
    """Writes a run's `rounds/`, `tb/`, `results.json` and `report.html`, and prints its table.

    The files on disk are all its state: a report made anew on the same folder goes on where the old one ended.

    Args:
        folder: the run's folder.
        config: the run's config.
        classes: K class names.
        images: the target images.
        target_labels: for the oracle figures of the page; None without.
        log: prints one line.
        rounds_done: rounds that need no report any more; the event files of later ones are purged. None: those that
            have a whole report on disk.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        classes: Sequence[str],
        images: Images,
        target_labels: TargetLabels | None,
        log: Callable[[str], None] = print,
        rounds_done: int | None = None,
    ):
        self.folder = Path(folder)
        self.config = config
        self.classes = tuple(classes)
        self.images = images
        self.target_labels = target_labels
        self.log = log
        self._rows = 0
        # Step 0 is the source model, step r + 1 round r; what an interrupted round left is purged.
        done = self.completed_rounds() if rounds_done is None else rounds_done
        first_step = done + 1 if self._source() else 0
        self._events = Events(self.folder / "tb", first_step) if config.report.tensorboard else None

    def completed_rounds(self) -> int:
        """How many rounds, from 0 on, have a whole report on disk."""
        return len(records.read_rounds(self.folder))

    def label_free_round(self, last: int | None = None) -> int | None:
        """The round that the config's validator likes best, of those up to `last`; None before the first."""
        rounds = records.read_rounds(self.folder)[: None if last is None else last + 1]
        return summarise(self.config, self._source(), rounds, 0.0)["label_free_choice"]["round"]

    def source(self, accuracy: Accuracy | None, validators: dict[str, float], seconds: float, steps: int = 0) -> None:
        """Report the source model, trained for `steps`: `rounds/source.json`, TensorBoard, the table's first row."""
        record = {"steps": steps, **_accuracy_fields(accuracy), "validators": validators, "seconds": seconds}
        records.write_record(records.source_file(self.folder), record)
        record = self._source()
        if validators:  # else the method begins with initial weights, and there is nothing to tell
            self._print_row(table.source_row(record, METHODS[self.config.method].adapts), record)
        if self._events:
            with self._writing_events():
                self._events.model(0, record, self.classes)
                self._events.flush()

    def round(self, record: RoundRecord) -> None:
        """Report a round: `report.json` and `pseudo_labels.csv` in `rounds/NN/`, TensorBoard, a row of the table."""
        folder = records.round_folder(self.folder, record.round)
        choice = record.choice
        chosen, gallery = {}, {}
        if choice is not None:
            records.write_pseudo_labels(folder / "pseudo_labels.csv", choice.pseudo, self.images.ids, self.classes)
            chosen = {"portion": choice.portion, **choice.metrics}
            limit = self.config.report.gallery
            gallery = {"gallery": gallery_entries(choice.pseudo, choice.reference, self.images.ids, limit)}
        content = {
            "round": record.round,
            "steps": record.steps,
            **chosen,
            "loss": record.loss,
            **_accuracy_fields(record.accuracy),
            "validators": record.validators,
            "seconds": record.seconds,
            **gallery,
        }
        # report.json comes last: where it is whole, so is the round.
        records.write_record(folder / "report.json", content)
        content = records.read_record(folder / "report.json")
        self._print_row(table.round_row(content, self._source()), content)
        if self._events:
            with self._writing_events():
                self._events.model(record.round + 1, content, self.classes)
                if choice is not None:
                    surest = surest_by_class(choice.pseudo, choice.pseudo.selected, self.config.report.gallery)
                    self._events.choice(record.round + 1, content, self.images, surest)
                self._events.flush()

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write `results.json` and `report.html` from the files of all rounds; returns the results."""
        source, rounds = self._source(), records.read_rounds(self.folder)
        results = records.plain(summarise(self.config, source, rounds, seconds))
        if self.config.report.page:
            from uda.report.page import render_page

            truth = None if self.target_labels is None else np.asarray(self.target_labels.reveal())
            page = render_page(self.config, self.classes, self.images, truth, source, rounds, results)
            write_text(self.folder / "report.html", page)
        write_json(self.folder / "results.json", results)
        for line in table.summary_lines(results):
            self.log(line)
        if self._events:
            with self._writing_events():
                self._events.close()
        return results

    @contextmanager
    def _writing_events(self) -> Iterator[None]:
        """TensorBoard writes in a thread; a full disk shows at one of the next calls."""
        try:
            yield
        except OSError as error:
            raise OutputError(self.folder / "tb", error) from error

    def _source(self) -> dict[str, Any] | None:
        return records.read_record(records.source_file(self.folder))

    def _print_row(self, row: str, record: dict[str, Any]) -> None:
        if self._rows % table.HEADER_EVERY == 0:
            for line in table.header(METHODS[self.config.method].adapts):
                self.log(line)
        self._rows += 1
        self.log(row)
        if record["accuracy"]:
            for line in table.class_lines(record["accuracy"]["per_class"]) + table.part_lines(record["accuracy"]):
                self.log(line)


def _accuracy_fields(accuracy: Accuracy | None) -> dict[str, Any]:
    """Class mean and overall for reading at a glance, and all of it under `accuracy`; None without labels."""
    if accuracy is None:
        return {"class_mean": None, "overall": None, "accuracy": None}
    return {"class_mean": accuracy.class_mean, "overall": accuracy.overall, "accuracy": accuracy.to_dict()}
