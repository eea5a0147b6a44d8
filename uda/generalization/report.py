"""The reports of a run of domain generalisation during training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uda.evaluation.accuracy import Accuracy
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import SeenAndUnseen
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.generalization.results import choice_of, summarise
from uda.models.network import Prediction
from uda.report.feature_map import MOST_POINTS, MapPart, map_table, sample_rows, shares_of
from uda.report.image_table import ImageTable
from uda.report.loggers import ZERO_SHOT_STEP, Loggers
from uda.report.run_record import MAP, RunRecord, held_out_of, images_of
from uda.report.run_report import RunReport
from uda.report.terminal import (
    ZERO_SHOT_NAME,
    Column,
    class_lines,
    fraction,
    percent,
    result_lines,
    with_zero_shot,
    zero_shot_lines,
)
from uda.training.records import REPORTS, ZERO_SHOT, Records
from uda.training.session import epoch_steps

COLUMNS: Sequence[Column] = (
    Column("report", 8),
    Column("steps", 9, rank=1),
    Column("loss", 9, rank=2),
    Column("held out", 11),
    Column("unseen", 9, oracle=True),
    Column("class mean", 12, oracle=True, rank=3),
    Column("seconds", 9, rank=4),
    Column("left", 9),
)


@dataclass(frozen=True)
class DomainResult:
    """How good a model is on one domain."""

    name: str
    """Name of the domain."""
    accuracy: Accuracy
    """Accuracy on a seen domain's held-out images, or on all images of the unseen domain (oracle)."""
    hardness: Mapping[str, Any]
    """`uda.evaluation.accuracy.hardness` of the same images."""
    prediction: Prediction
    """The model's prediction of the same images."""


class GeneralizationReport(RunReport):
    """Writes a run's `rounds/NN/`, `tb/`, `report.html` and `results.json`, and prints a row per interval.

    `rounds/NN/` has `report.json`, `images.parquet` with the images of the unseen domain, and `held_out.parquet` with
    the held-out images of the seen domains.

    `validation_choice` is the report with the best accuracy on the seen domains' held-out images. Only reports of the
    method's last stage count, because models of earlier stages are not final models of the method. All figures of the
    unseen domain are oracle figures.

    Args:
        records: the run's records so far.
        config: the run's config.
        domains: the seen domains and the unseen domain.
        log: prints one line.
    """

    def __init__(
        self,
        records: Records,
        config: GeneralizationConfig,
        domains: SeenAndUnseen,
        log: Callable[[str], None] = print,
    ):
        untouched = config.model.classifier and records.get(ZERO_SHOT) is None
        first = ZERO_SHOT_STEP if untouched else len(records.reports())
        super().__init__(records, config, log, first, domains.unseen.images)
        self.domains = domains
        self.columns = with_zero_shot(COLUMNS) if config.model.classifier else COLUMNS

    def zero_shot(self, results: Sequence[DomainResult], seconds: float) -> None:
        """Report the untouched network with the class vectors of `model.classifier`, before the training.

        `zero_shot.json` in `rounds/`, TensorBoard, the table's first row.
        """
        record = {**_reached(results), "validators": {}, "seconds": seconds, "warnings": []}
        record = self.records.write(ZERO_SHOT, record)
        self.print_row(self.columns, {"report": ZERO_SHOT_NAME, **_reached_cells(record)})
        self.draw(lambda events: _draw(events, record, ZERO_SHOT_STEP))
        self.write_page()

    def interval(
        self,
        index: int,
        stage: int,
        steps: int,
        scalars: Mapping[str, float],
        results: Sequence[DomainResult],
        seconds: float,
    ) -> None:
        """Report an interval of a stage. The last of the results is that of the unseen domain."""
        *seen, unseen = results
        self._write_tables(index, results)
        record = {
            "round": index,
            "stage": stage,
            "steps": steps,
            **scalars,
            **_reached(results),
            "seen": {
                result.name: {
                    "accuracy": result.accuracy.to_dict(),
                    "hardness": result.hardness,
                    "training": len(domain.training),
                    "held_out": len(domain.validation),
                }
                for result, domain in zip(seen, self.domains.seen, strict=True)
            },
            "hardness": unseen.hardness,
            "seconds": seconds,
        }
        # report.json comes last. If it is complete, the report is complete.
        self.records.write(REPORTS["rounds"].format(index), record)
        self.print_row(self.columns, _cells(record))
        self.draw(lambda events: _draw(events, record, index))
        self.write_page()

    def parts(self) -> tuple[list[tuple[float, float]], list[float]]:
        """The intervals by their steps."""
        done, steps = [], 0
        for record in self.records.reports():
            done.append((record["steps"] - steps, record["seconds"]))
            steps = record["steps"]
        training = self.config.training
        return done, epoch_steps(training.interval, 0, training.steps - steps)

    def is_choice(self, index: int) -> bool:
        """Whether the report is better on the held-out images than all earlier reports of the last stage."""
        found = self.records.reports()
        last = len(GENERALIZATION_METHODS[self.config.method].stages) - 1
        return found[-1]["stage"] == last and choice_of(found)["round"] == index

    def summarise(self, seconds: float) -> dict[str, Any]:
        return summarise(self.config, self.records.reports(), seconds, self.records.get(ZERO_SHOT))

    def figures(self, results: Mapping[str, Any]) -> dict[str, float | None]:
        last = self.records.reports()[-1]
        names = ("final", "validation_choice")
        return {
            "final/loss": last["loss"],
            **{f"{name}/validation": results[name]["validation"] for name in names},
            **{f"oracle/{name}": results[name]["overall"] for name in names},
        }

    def page(self, record: RunRecord) -> str:
        from uda.generalization.page import generalization_page

        return generalization_page(record, self.config).render()

    def write_map(self, results: Sequence[DomainResult]) -> None:
        """Write `map.parquet`: held-out images of the seen domains and images of the unseen domain, the last one."""
        counts = [len(result.prediction.logits) for result in results]
        parts = []
        for place, share in enumerate(shares_of(counts, MOST_POINTS)):
            rows, found = sample_rows(counts[place], share), results[place].prediction
            paths, labels = self._images(place)
            part = Prediction(found.features[rows], found.logits[rows], found.weight)
            unseen = rows if place == len(results) - 1 else None
            parts.append(MapPart(part, [paths[row] for row in rows], labels[rows], np.full(len(rows), place), unseen))
        table = map_table(self.domains.classes, self._names, parts, self.config.report.map)
        table.write(self.folder / MAP)

    @property
    def _names(self) -> list[str]:
        """Names of the seen domains and of the unseen domain."""
        return [*(seen.name for seen in self.domains.seen), self.domains.name]

    def _images(self, place: int) -> tuple[Sequence[str], np.ndarray]:
        """Paths and labels of a seen domain's held-out images, or of the unseen domain's images."""
        if place == len(self.domains.seen):
            return self.domains.unseen.images.ids, np.asarray(self.domains.unseen_labels.reveal())
        seen = self.domains.seen[place]
        return [seen.domain.images.ids[row] for row in seen.validation], seen.domain.labels[seen.validation]

    def _write_tables(self, index: int, results: Sequence[DomainResult]) -> None:
        """Write the tables of a report: the unseen domain's images, and the seen domains' held-out images."""
        *seen, unseen = results
        paths, labels = self._images(len(seen))
        columns = {"label": labels, **self.predicted_columns(unseen.prediction)}
        domain = np.zeros(len(paths), np.int64)
        table = ImageTable(self.domains.classes, paths, domain, (unseen.name,), columns)
        self.write_images(images_of(index), table)

        found = [
            {"label": self._images(place)[1], **self.predicted_columns(one.prediction, on_a_plane=False)}
            for place, one in enumerate(seen)
        ]
        columns = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        paths = [path for place in range(len(seen)) for path in self._images(place)[0]]
        domain = np.repeat(np.arange(len(seen)), [len(one["label"]) for one in found])
        self.write_images(
            held_out_of(index), ImageTable(self.domains.classes, paths, domain, self._names[:-1], columns)
        )


def _cells(record: Mapping[str, Any]) -> dict[str, str]:
    """A row of the table in the terminal."""
    return {
        "report": str(record["round"]),
        "steps": str(record["steps"]),
        "loss": fraction(record["loss"]),
        **_reached_cells(record),
    }


def _reached_cells(record: Mapping[str, Any]) -> dict[str, str]:
    return {
        "held out": percent(record["validation"]),
        "unseen": percent(record["overall"]),
        "class mean": percent(record["class_mean"]),
        "seconds": f"{record['seconds']:.0f}",
    }


def _reached(results: Sequence[DomainResult]) -> dict[str, Any]:
    """What a model reaches: the mean over the seen domains' held-out images, and the unseen domain's figures."""
    *seen, unseen = results
    return {
        "validation": sum(result.accuracy.overall for result in seen) / len(seen),
        "class_mean": unseen.accuracy.class_mean,
        "overall": unseen.accuracy.overall,
        "accuracy": unseen.accuracy.to_dict(),
    }


def _draw(events: Loggers, record: Mapping[str, Any], step: int) -> None:
    """Log a report's figures."""
    held_out = {name: found["accuracy"]["overall"] for name, found in record.get("seen", {}).items()}
    events.scalars(step, "train", {"loss": record.get("loss")})
    events.scalars(step, "validation", {"mean": record["validation"], **held_out})
    events.scalars(step, "oracle", {name: record[name] for name in ("overall", "class_mean")})


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """A run's result in a few lines."""
    choice, best = results["validation_choice"], results["oracle_best"]
    rows = (
        *zero_shot_lines((results["zero_shot"] or {}).get("overall")),
        ("final", results["final"]["overall"], "the last report"),
        ("validation choice", choice["overall"], f"report {choice['round']}, best on the held-out images"),
        ("oracle best", best["overall"], f"report {best['round']}, best by labels: a bound, not a result"),
    )
    return [
        f"accuracy on the unseen domain {results['target']}, % (oracle):",
        *result_lines(rows),
        *class_lines(results["final"]["per_class"]),
    ]
