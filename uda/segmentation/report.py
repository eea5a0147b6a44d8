"""The report of a segmentation: called once after the source stage, once per round and once at the end."""

from collections.abc import Callable, Mapping
from typing import Any

from uda.data.scenes import SceneDomains
from uda.report.loggers import SOURCE_STEP, Loggers
from uda.report.run_report import RunReport
from uda.report.terminal import class_lines
from uda.segmentation.config import SegmentationConfig
from uda.segmentation.evaluation import SceneFigures, SceneMeasures
from uda.segmentation.pseudo_labels import SceneLabels, named
from uda.segmentation.results import best_round, summarise
from uda.segmentation.stages import SOURCE_STAGE
from uda.segmentation.terminal import COLUMNS, round_cells, source_cells
from uda.training.checkpoint import Progress
from uda.training.records import REPORTS, SOURCE, Records


class SegmentationReport(RunReport):
    """Writes a run's `rounds/`, `tb/` and `results.json`, and prints its table.

    Args:
        records: the records of the run so far.
        config: the run's config.
        domains: the run's scenes.
        log: prints one line.
    """

    def __init__(
        self, records: Records, config: SegmentationConfig, domains: SceneDomains, log: Callable[[str], None] = print
    ):
        first = len(records.reports()) if records.get(SOURCE) else SOURCE_STEP
        super().__init__(records, config, log, first, domains.target.images)
        self.classes = domains.classes
        self.labelled = domains.target_maps is not None
        self.columns = COLUMNS if domains.held_out is not None else [c for c in COLUMNS if c.title != "held out"]

    def source(self, measures: SceneMeasures, seconds: float, steps: int) -> None:
        """Report the source model."""
        record = self.records.write(SOURCE, {**self._reached(measures), "seconds": seconds, "steps": steps})
        self._draw(SOURCE_STEP, record)
        self._print(source_cells(record), record)

    def round(
        self, index: int, labels: SceneLabels, measures: SceneMeasures, loss: float, steps: int, seconds: float
    ) -> None:
        """Report a round."""
        entry = {
            "round": index,
            "portion": labels.portion,
            **labels.figures,
            **self._reached(measures),
            "loss": loss,
            "steps": steps,
            "seconds": seconds,
        }
        record = self.records.write(REPORTS["rounds"].format(index), entry)
        self._draw(index, record)
        self._print(round_cells(record, self.records.get(SOURCE)), record)

    def label_free_round(self) -> int | None:
        """The round that the label-free score prefers so far."""
        reports = self.records.reports()
        return best_round(reports, [record["validators"]["im"] for record in reports])["round"]

    def steps_before(self, progress: Progress) -> int:
        """Training steps of the run before the current stage."""
        source = self.records.get(SOURCE)
        if progress.stage == SOURCE_STAGE.name or source is None:
            return 0
        return source["steps"] + sum(record["steps"] for record in self.records.reports())

    def summarise(self, seconds: float) -> dict[str, Any]:
        return summarise(self.config, self.records.get(SOURCE), self.records.reports(), seconds)

    def figures(self, results: Mapping[str, Any]) -> dict[str, float | None]:
        names = ("final", "label_free_choice", "oracle_best")
        return {f"oracle/{name}": results[name]["mean_iou"] for name in names}

    def _reached(self, measures: SceneMeasures) -> dict[str, Any]:
        target, held_out = measures.target, measures.held_out
        return {
            **_accuracy(target),
            "held_out": None if held_out is None else _accuracy(held_out),
            "predicted_per_class": named(target.predicted, self.classes),
            "validators": target.validators,
            "warnings": [],
        }

    def _draw(self, step: int, record: Mapping[str, Any]) -> None:
        held_out = (record["held_out"] or {}).get("mean_iou")
        groups = {
            "oracle": {
                "mean_iou": record["mean_iou"],
                "pixel_accuracy": record["pixel_accuracy"],
                "held_out": held_out,
            },
            "oracle_iou": record["iou"] or {},
            "validation": record["validators"],
        }
        if "portion" in record:
            groups["oracle"]["tp_rate"] = record["tp_rate"]
            groups["selection"] = {"portion": record["portion"], "selected": record["selected_share"]}

        def draw(loggers: Loggers) -> None:
            for group, values in groups.items():
                loggers.scalars(step, group, values)

        self.draw(draw)

    def _print(self, cells: Mapping[str, str], record: Mapping[str, Any]) -> None:
        self.print_row(self.columns, cells)
        if record["iou"]:
            self.tell(lambda width: class_lines(record["iou"], width))


def _accuracy(figures: SceneFigures) -> dict[str, Any]:
    """Mean IoU, IoU by class, pixel accuracy and the means over subsets; None without labels."""
    keys = ("mean_iou", "iou", "absent", "pixel_accuracy", "subsets", "confusion")
    known = dict.fromkeys(keys) if figures.accuracy is None else figures.accuracy.to_dict()
    return {key: known[key] for key in keys}
