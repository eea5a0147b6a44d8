"""The report of a run: called once after source training, once per round and once at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.events import draw_embedding, draw_model, draw_selection, draw_target
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.adaptation.partial import named_classes
from uda.adaptation.pseudo_labels import RoundLabels
from uda.adaptation.pseudo_labels_csv import write_pseudo_labels
from uda.adaptation.results import summarise
from uda.adaptation.terminal import (
    OF_INTERVALS,
    OF_ROUNDS,
    part_lines,
    round_cells,
    source_cells,
    zero_shot_cells,
)
from uda.adaptation.work import steps_of_rounds, work_of
from uda.data.class_names import NO_LABEL
from uda.data.domains import TargetLabels
from uda.data.images import Images
from uda.evaluation.accuracy import Accuracy
from uda.evaluation.collapse import CURES, classes_without_labels, predictions, signs_of_collapse, spread
from uda.models.network import Prediction
from uda.report.feature_map import MapPart, map_table
from uda.report.image_table import ImageTable
from uda.report.loggers import SOURCE_STEP, ZERO_SHOT_STEP, Loggers
from uda.report.pictures import in_turns
from uda.report.run_record import MAP, SOURCE_IMAGES, RunRecord, images_of
from uda.report.run_report import RunReport
from uda.report.terminal import class_lines, indented, with_zero_shot
from uda.training.pace import seconds_left
from uda.training.records import CHOICE, REPORTS, SOURCE, ZERO_SHOT, Records
from uda.training.session import epoch_steps

#: Images in TensorBoard's grid of a round.
SUREST = 24


@dataclass(frozen=True)
class RoundRecord:
    """A round, or an interval of a method without rounds, and its results."""

    round: int
    """Number of the round, from 0."""
    steps: int
    """Training steps since the stage began. A round is a stage, an interval is a part of one."""
    prediction: Prediction
    """The model's prediction of the target after the round."""
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
        target_domain: (N,) place of each target image's domain in `data.target`; None: there is one domain.
    """

    repeats = 1
    """How often all rounds are run, from those of this report to the end of the job."""

    def __init__(
        self,
        records: Records,
        config: AdaptationConfig,
        classes: Sequence[str],
        source: np.ndarray,
        images: Images,
        target_labels: TargetLabels | None,
        log: Callable[[str], None] = print,
        target_domain: np.ndarray | None = None,
    ):
        first = len(records.reports()) if records.get(SOURCE) else SOURCE_STEP
        if config.model.classifier and records.get(ZERO_SHOT) is None:
            first = ZERO_SHOT_STEP
        super().__init__(records, config, log, first, images)
        self.classes = tuple(classes)
        named = named_classes(config, self.classes)
        self.num_source = int(source.sum())
        self.source_counts = source if named is None else source * named
        self.images = images
        self.target_labels = target_labels
        self.target_domain = np.zeros(len(images.ids), np.int64) if target_domain is None else target_domain
        self.labelled = target_labels is not None
        if named is not None and target_labels is not None:
            truth = target_labels.reveal()[target_labels.reveal() >= 0]
            if left_out := int((~named[truth]).sum()):
                log(
                    f"warning: {left_out:,} of {len(truth):,} target images with labels have classes that "
                    "data.target_classes does not name; accuracy counts them (oracle)"
                )
        self.partial = config.data.partial and named is None
        self.columns = OF_INTERVALS if ADAPTATION_METHODS[config.method].adapts else OF_ROUNDS
        if config.model.classifier:
            self.columns = with_zero_shot(self.columns)
        self._cures_said: set[str] = set()
        self._warned: list[str] = []
        for record in records.reports():
            labels = self._pseudo_labels(record["round"])
            if "portion" in record and not labels.is_file():
                log(f"warning: {labels} is missing and cannot be restored; no figure depends on it")

    def label_free_round(self) -> int | None:
        """The round with the best score of the config's validator so far; None before the first round."""
        return self.summarise(0.0)["label_free_choice"]["round"]

    def zero_shot(
        self, prediction: Prediction, accuracy: Accuracy | None, validators: dict[str, float], seconds: float
    ) -> None:
        """Report the untouched network with the class vectors of `model.classifier`, before the source stage.

        `zero_shot.json` in `rounds/`, TensorBoard, the table's first row.
        """
        figures = {**_accuracy_fields(accuracy), "validators": validators, "seconds": seconds, "warnings": []}
        record = self.records.write(ZERO_SHOT, figures | spread(predictions(prediction), self.classes))
        self._print(zero_shot_cells(record), record, "source")
        self.draw(lambda events: draw_model(events, ZERO_SHOT_STEP, record, self.classes))
        self.write_page()

    def source(
        self,
        prediction: Prediction | None,
        accuracy: Accuracy | None,
        validators: dict[str, float],
        seconds: float,
        steps: int = 0,
    ) -> None:
        """Report the source model, trained for `steps`: `source.json` and `source/images.parquet` in `rounds/`,
        TensorBoard, a row.

        `prediction`: its prediction of the target; None if there is no source model.
        """
        record = {
            "steps": steps,
            **_accuracy_fields(accuracy),
            "validators": validators,
            "seconds": seconds,
            "warnings": [],
            "source_per_class": dict(zip(self.classes, self.source_counts.tolist(), strict=True)),
        }
        if prediction is not None:
            self._write_images(SOURCE_IMAGES, prediction)
            predicted = predictions(prediction)
            record |= spread(predicted, self.classes)
            record["warnings"] = signs_of_collapse(self.classes, predicted, self.source_counts, partial=self.partial)
        record = self.records.write(SOURCE, record)
        if validators:  # without a source model there is nothing to print
            self._print(source_cells(record), record, "source")
        self.draw(lambda events: draw_model(events, SOURCE_STEP, record, self.classes))
        self.write_page()

    def round(self, record: RoundRecord) -> None:
        """Report a round: `report.json`, `images.parquet`, `pseudo_labels.csv` in `rounds/NN/`, TensorBoard, a row."""
        labels = record.labels
        self._write_images(images_of(record.round), record.prediction, labels)
        predicted = predictions(record.prediction)
        chosen = {}
        if labels is not None:
            write_pseudo_labels(self._pseudo_labels(record.round), labels.pseudo, self.images.ids, self.classes)
            chosen = {"portion": labels.portion, **labels.metrics}
        content = {
            "round": record.round,
            "steps": record.steps,
            **chosen,
            "loss": record.loss,
            **_accuracy_fields(record.accuracy),
            "validators": record.validators,
            **spread(predicted, self.classes),
            "warnings": self._warnings(record, predicted),
            "seconds": record.seconds,
        }
        # report.json comes last. If it is complete, the round is complete.
        content = self.records.write(REPORTS["rounds"].format(record.round), content)
        stage = "adaptation" if labels is None else "self_training"
        self._print(round_cells(content, self._begun_with), content, stage)

        def draw_round(events: Loggers) -> None:
            draw_model(events, record.round, content, self.classes)
            if labels is not None:
                groups = np.where(labels.pseudo.selected, labels.pseudo.labels, -1)
                surest = in_turns(-labels.pseudo.ratios, groups)[: min(SUREST, self.config.report.gallery)]
                draw_selection(events, record.round, content, labels.pseudo, self.images, surest)

        self.draw(draw_round)
        self.write_page()

    def target(self, prediction: Prediction) -> None:
        """Log the target images by the model of the last report: AVH, and at the end of the run their features."""
        step = len(self.records.reports()) - 1 if self.records.reports() else SOURCE_STEP
        truth = None if self.target_labels is None else self.target_labels.reveal()

        def draw(events: Loggers) -> None:
            draw_target(events, step, prediction)
            if not self.parts()[1]:
                draw_embedding(events, step, prediction, self.images, self.classes, truth)

        self.draw(draw)

    def figures(self, results: Mapping[str, Any]) -> dict[str, float | None]:
        last = (self.records.reports() or [self.records.get(SOURCE)])[-1] or {}
        names = ("loss", "effective_classes", "largest_share", "selected", "avc", "confidence")
        found = {name: last.get(name) for name in names} | last.get("validators", {})
        models = ("zero_shot", "source_only", "final", "label_free_choice")
        oracle = {f"oracle/{key}": results[key]["class_mean"] for key in models if results[key]}
        return {f"final/{name}": value for name, value in found.items()} | oracle

    @property
    def seconds_left(self) -> float | None:
        return seconds_left(*self.parts(self.repeats))

    def parts(self, repeats: int = 1) -> tuple[list[tuple[float, float]], list[float]]:
        """The rounds, `repeats` times, or the intervals of the adaptation, by their steps.

        Before the first of them, the source stage is the only one done. It is compared by images, of which one in a
        step costs as much as three in a predict pass.
        """
        config, target = self.config, len(self.images.ids)
        source, reports = self.records.get(SOURCE), self.records.reports()
        if ADAPTATION_METHODS[config.method].adapts:
            steps = epoch_steps(config.adaptation.interval, 0, config.adaptation.steps)
        elif ADAPTATION_METHODS[config.method].rounds:
            steps = repeats * steps_of_rounds(config, self.num_source, target)
        else:
            steps = []
        if reports or source is None or not source["steps"]:
            done = [(part, record["seconds"]) for part, record in zip(steps, reports, strict=False)]
            return done, steps[len(reports) :]
        work = work_of(config, self.num_source, target)
        done = [(3 * work.source_images * source["steps"] + target, source["seconds"])]
        return done, [3 * work.later_images * part + target for part in steps]

    def summarise(self, seconds: float) -> dict[str, Any]:
        records = self.records
        before = records.get(SOURCE), records.get(ZERO_SHOT)
        return summarise(self.config, before[0], records.reports(), seconds, before[1], records.get(CHOICE))

    def page(self, record: RunRecord) -> str:
        from uda.adaptation.page import adaptation_page

        return adaptation_page(record, self.config).render()

    def write_map(self, source: MapPart, rows: np.ndarray, target: Prediction) -> None:
        """Write `map.parquet`.

        Args:
            source: source images.
            rows: (n,) numbers of target images.
            target: their prediction by the final model.
        """
        truth = np.full(len(self.images.ids), NO_LABEL)
        if self.target_labels is not None:
            truth = np.asarray(self.target_labels.reveal())
        sources, targets = self.config.data.sources, self.config.data.targets
        paths = [self.images.ids[row] for row in rows]
        part = MapPart(target, paths, truth[rows], len(sources) + self.target_domain[rows], rows)
        last = self._tables.get(images_of(len(self.records.reports()) - 1))
        chosen = None if last is None else last.get("selected")
        columns = {} if chosen is None else {"selected": np.r_[np.zeros(len(source.paths), bool), chosen[rows]]}
        table = map_table(self.classes, [*sources, *targets], [source, part], self.config.report.map, columns)
        table.write(self.folder / MAP)

    def _write_images(self, name: str, prediction: Prediction, labels: RoundLabels | None = None) -> None:
        """Write `images.parquet`: each image's prediction after the report, and what the round chose before it."""
        columns = {}
        if self.target_labels is not None:
            columns["label"] = np.asarray(self.target_labels.reveal())
        if labels is not None:
            pseudo, reference = labels.pseudo, labels.reference
            columns |= {"pseudo_label": pseudo.labels, "score": pseudo.scores, "ratio": pseudo.ratios}
            columns |= {"selected": pseudo.selected, "softmax_label": reference.labels}
            columns["softmax_selected"] = reference.selected
        columns |= self.predicted_columns(prediction)
        about = {"selector": self.config.self_training.selector if labels is not None else None}
        domains = tuple(self.config.data.targets)
        table = ImageTable(self.classes, self.images.ids, self.target_domain, domains, columns, about)
        self.write_images(name, table)

    def _pseudo_labels(self, round_index: int) -> Path:
        return (self.folder / REPORTS["rounds"].format(round_index)).with_name("pseudo_labels.csv")

    def _warnings(self, record: RoundRecord, predicted: np.ndarray) -> list[str]:
        """Signs of collapse after a round, and classes without pseudo-labels in it."""
        source = self._predicted(self.records.get(SOURCE))
        found = signs_of_collapse(self.classes, predicted, self.source_counts, source, self.partial)
        if record.labels is None:
            return found
        chosen_from = self._predicted(self.records.reports()[record.round - 1]) if record.round else source
        selected = np.array([record.labels.metrics["selected_per_class"][name] for name in self.classes])
        images = len(self.images.ids)
        return found + classes_without_labels(
            self.classes, selected, self.source_counts, images, chosen_from, self.partial
        )

    @property
    def _begun_with(self) -> dict[str, Any] | None:
        """Record of the model that gains are measured from: the source model, or the untouched one without it."""
        source = self.records.get(SOURCE)
        return source if source and source["validators"] else self.records.get(ZERO_SHOT)

    def _predicted(self, record: dict[str, Any] | None) -> np.ndarray | None:
        """(K,) numbers of predictions of each class in a record; None if it has none."""
        counts = (record or {}).get("predicted_per_class")
        return None if counts is None else np.array([counts[name] for name in self.classes])

    def _print(self, cells: Mapping[str, str], record: dict[str, Any], stage: str) -> None:
        """Print a row, and below it the classes and warnings."""
        self.print_row(self.columns, cells)
        warnings = [f"warning: {warning}" for warning in record["warnings"]]
        if warnings and warnings == self._warned:
            warnings = [f"warning: the same as before ({len(warnings)})"]
        else:
            self._warned = warnings[:]
        if warnings and stage not in self._cures_said:
            self._cures_said.add(stage)
            warnings.append(CURES[stage])

        def below(width: int) -> list[str]:
            accuracy = record["accuracy"]
            figures = class_lines(accuracy["per_class"], width) + part_lines(accuracy, width) if accuracy else []
            return figures + indented(warnings, width)

        self.tell(below)


def _accuracy_fields(accuracy: Accuracy | None) -> dict[str, Any]:
    """Class mean and overall accuracy at the top level, all figures under `accuracy`; None without labels."""
    if accuracy is None:
        return {"class_mean": None, "overall": None, "accuracy": None}
    return {"class_mean": accuracy.class_mean, "overall": accuracy.overall, "accuracy": accuracy.to_dict()}
