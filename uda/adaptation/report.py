"""The report of a run: called once after source training, once per round and once at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.events import draw_model, draw_selection
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.adaptation.partial import named_classes
from uda.adaptation.pseudo_labels import RoundLabels
from uda.adaptation.pseudo_labels_csv import write_pseudo_labels
from uda.adaptation.results import summarise
from uda.adaptation.terminal import OF_INTERVALS, OF_ROUNDS, part_lines, round_cells, source_cells
from uda.data.domains import TargetLabels
from uda.data.images import Images
from uda.evaluation.accuracy import Accuracy
from uda.evaluation.collapse import CURES, classes_without_labels, signs_of_collapse, spread
from uda.report.events import Events
from uda.report.gallery import gallery_entries, surest_by_class
from uda.report.run_report import RunReport
from uda.report.terminal import class_lines, indented
from uda.training.records import REPORTS, SOURCE, Records


@dataclass(frozen=True)
class RoundRecord:
    """A round, or an interval of a method without rounds, and its results."""

    round: int
    """Number of the round, from 0."""
    steps: int
    """Training steps since the stage began. A round is a stage, an interval is a part of one."""
    predicted: np.ndarray
    """(K,) numbers of target images that the model predicts as each class after the round."""
    accuracy: Accuracy | None
    """Oracle accuracy after the round; None without target labels."""
    validators: dict[str, float]
    """Label-free scores of the prediction after the round."""
    loss: float
    """Mean training loss of the round."""
    seconds: float
    """Duration of the round."""
    labels: RoundLabels | None = None
    """What the round selected; None for a method without rounds."""


class AdaptationReport(RunReport):
    """Writes a run's `rounds/`, `tb/`, `results.json` and `report.html`, and prints its table.

    Args:
        records: the records of the run so far.
        config: the run's config.
        classes: K class names.
        source: (K,) numbers of source images of each class.
        images: the target images.
        target_labels: target labels for the oracle figures of the page; None if there are none.
        log: prints one line.
    """

    def __init__(
        self,
        records: Records,
        config: AdaptationConfig,
        classes: Sequence[str],
        source: np.ndarray,
        images: Images,
        target_labels: TargetLabels | None,
        log: Callable[[str], None] = print,
    ):
        # Step 0 is the source model, step r + 1 is round r. Events of an interrupted round are purged.
        super().__init__(records, config, log, len(records.reports()) + 1 if records.get(SOURCE) else 0)
        self.classes = tuple(classes)
        named = named_classes(config, self.classes)
        self.source_counts = source if named is None else source * named
        self.images = images
        self.target_labels = target_labels
        if named is not None and target_labels is not None:
            truth = target_labels.reveal()[target_labels.reveal() >= 0]
            if left_out := int((~named[truth]).sum()):
                log(
                    f"warning: {left_out:,} of {len(truth):,} target images with labels have classes that "
                    "data.target_classes does not name; accuracy counts them (oracle)"
                )
        self.partial = config.data.partial and named is None
        self.columns = OF_INTERVALS if ADAPTATION_METHODS[config.method].adapts else OF_ROUNDS
        self._cures_said: set[str] = set()
        for record in records.reports():
            labels = self._pseudo_labels(record["round"])
            if "portion" in record and not labels.is_file():
                log(f"warning: {labels} is missing and cannot be restored; no figure depends on it")

    def label_free_round(self) -> int | None:
        """The round with the best score of the config's validator so far; None before the first round."""
        return self.summarise(0.0)["label_free_choice"]["round"]

    def source(
        self,
        predicted: np.ndarray | None,
        accuracy: Accuracy | None,
        validators: dict[str, float],
        seconds: float,
        steps: int = 0,
    ) -> None:
        """Report the source model, trained for `steps`: `rounds/source.json`, TensorBoard, the table's first row.

        `predicted`: (K,) numbers of target images that it predicts as each class; None if there is no source model.
        """
        record = {
            "steps": steps,
            **_accuracy_fields(accuracy),
            "validators": validators,
            "seconds": seconds,
            "warnings": [],
        }
        if predicted is not None:
            record |= spread(predicted, self.classes)
            record["warnings"] = signs_of_collapse(self.classes, predicted, self.source_counts, partial=self.partial)
        record = self.records.write(SOURCE, record)
        if validators:  # without a source model there is nothing to print
            self._print(source_cells(record), record, "source")
        self.draw(lambda events: draw_model(events, 0, record, self.classes))

    def round(self, record: RoundRecord) -> None:
        """Report a round: `report.json` and `pseudo_labels.csv` in `rounds/NN/`, TensorBoard, a row of the table."""
        labels = record.labels
        chosen, gallery = {}, {}
        if labels is not None:
            write_pseudo_labels(self._pseudo_labels(record.round), labels.pseudo, self.images.ids, self.classes)
            chosen = {"portion": labels.portion, **labels.metrics}
            limit = self.config.report.gallery
            gallery = {"gallery": gallery_entries(labels.pseudo, labels.reference, self.images.ids, limit)}
        content = {
            "round": record.round,
            "steps": record.steps,
            **chosen,
            "loss": record.loss,
            **_accuracy_fields(record.accuracy),
            "validators": record.validators,
            **spread(record.predicted, self.classes),
            "warnings": self._warnings(record),
            "seconds": record.seconds,
            **gallery,
        }
        # report.json comes last. If it is complete, the round is complete.
        content = self.records.write(REPORTS["rounds"].format(record.round), content)
        stage = "adaptation" if labels is None else "self_training"
        self._print(round_cells(content, self.records.get(SOURCE)), content, stage)
        step = record.round + 1

        def draw_round(events: Events) -> None:
            draw_model(events, step, content, self.classes)
            if labels is not None:
                surest = surest_by_class(labels.pseudo, labels.pseudo.selected, self.config.report.gallery)
                draw_selection(events, step, content, self.images, surest)

        self.draw(draw_round)

    def summarise(self, seconds: float) -> dict[str, Any]:
        return summarise(self.config, self.records.get(SOURCE), self.records.reports(), seconds)

    def page(self, results: Mapping[str, Any]) -> str:
        from uda.adaptation.page import render_page

        truth = None if self.target_labels is None else np.asarray(self.target_labels.reveal())
        records = self.records
        return render_page(
            self.config, self.classes, self.images, truth, records.get(SOURCE), records.reports(), results
        )

    def _pseudo_labels(self, round_index: int) -> Path:
        return (self.folder / REPORTS["rounds"].format(round_index)).with_name("pseudo_labels.csv")

    def _warnings(self, record: RoundRecord) -> list[str]:
        """Signs of collapse after a round, and classes without pseudo-labels in it."""
        source = self._predicted(self.records.get(SOURCE))
        found = signs_of_collapse(self.classes, record.predicted, self.source_counts, source, self.partial)
        if record.labels is None:
            return found
        chosen_from = self._predicted(self.records.reports()[record.round - 1]) if record.round else source
        selected = np.array([record.labels.metrics["selected_per_class"][name] for name in self.classes])
        images = len(self.images.ids)
        return found + classes_without_labels(
            self.classes, selected, self.source_counts, images, chosen_from, self.partial
        )

    def _predicted(self, record: dict[str, Any] | None) -> np.ndarray | None:
        """(K,) numbers of predictions of each class in a record; None if it has none."""
        counts = (record or {}).get("predicted_per_class")
        return None if counts is None else np.array([counts[name] for name in self.classes])

    def _print(self, cells: Mapping[str, str], record: dict[str, Any], stage: str) -> None:
        """Print a row, and below it the classes and warnings."""
        self.print_row(self.columns, cells)
        if record["accuracy"]:
            for line in class_lines(record["accuracy"]["per_class"]) + part_lines(record["accuracy"]):
                self.log(line)
        warnings = [f"warning: {warning}" for warning in record["warnings"]]
        if warnings and stage not in self._cures_said:
            self._cures_said.add(stage)
            warnings.append(CURES[stage])
        for line in indented(warnings):
            self.log(line)


def _accuracy_fields(accuracy: Accuracy | None) -> dict[str, Any]:
    """Class mean and overall accuracy at the top level, all figures under `accuracy`; None without labels."""
    if accuracy is None:
        return {"class_mean": None, "overall": None, "accuracy": None}
    return {"class_mean": accuracy.class_mean, "overall": accuracy.overall, "accuracy": accuracy.to_dict()}
