"""The reports of a run of domain generalisation during training, and its results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uda.evaluation.accuracy import Accuracy
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import SeenAndUnseen
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.report.loggers import Loggers
from uda.report.run_record import RunRecord
from uda.report.run_report import RunReport
from uda.report.terminal import Column, class_lines, fraction, percent, result_lines
from uda.training.records import REPORTS, Records
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


class GeneralizationReport(RunReport):
    """Writes a run's `rounds/NN/report.json`, `tb/`, `report.html` and `results.json`, and prints a row per interval.

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
        super().__init__(records, config, log, len(records.reports()))
        self.domains = domains

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
        record = {
            "round": index,
            "stage": stage,
            "steps": steps,
            **scalars,
            "validation": sum(result.accuracy.overall for result in seen) / len(seen),
            "seen": {
                result.name: {"accuracy": result.accuracy.to_dict(), "hardness": result.hardness} for result in seen
            },
            "class_mean": unseen.accuracy.class_mean,
            "overall": unseen.accuracy.overall,
            "accuracy": unseen.accuracy.to_dict(),
            "hardness": unseen.hardness,
            "seconds": seconds,
        }
        self.records.write(REPORTS["rounds"].format(index), record)
        self.print_row(COLUMNS, _cells(record))
        self.draw(lambda events: _draw(events, record))

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
        return summarise(self.config, self.records.reports(), seconds)

    def figures(self, results: Mapping[str, Any]) -> dict[str, float | None]:
        last = self.records.reports()[-1]
        names = ("final", "validation_choice")
        return {
            "final/loss": last["loss"],
            **{f"{name}/validation": results[name]["validation"] for name in names},
            **{f"oracle/{name}": results[name]["overall"] for name in names},
        }

    def page(self, record: RunRecord) -> str:
        from uda.generalization.page import render_page

        results = summarise(self.config, record.reports, record.seconds)
        return render_page(self.config, self.domains, record.reports, results)


def _cells(record: Mapping[str, Any]) -> dict[str, str]:
    """A row of the table in the terminal."""
    return {
        "report": str(record["round"]),
        "steps": str(record["steps"]),
        "loss": fraction(record["loss"]),
        "held out": percent(record["validation"]),
        "unseen": percent(record["overall"]),
        "class mean": percent(record["class_mean"]),
        "seconds": f"{record['seconds']:.0f}",
    }


def _draw(events: Loggers, record: Mapping[str, Any]) -> None:
    """Log a report's figures."""
    step = record["round"]
    held_out = {name: found["accuracy"]["overall"] for name, found in record["seen"].items()}
    events.scalars(step, "train", {"loss": record["loss"]})
    events.scalars(step, "validation", {"mean": record["validation"], **held_out})
    events.scalars(step, "oracle", {name: record[name] for name in ("overall", "class_mean")})


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """A run's result in a few lines."""
    choice, best = results["validation_choice"], results["oracle_best"]
    rows = (
        ("final", results["final"]["overall"], "the last report"),
        ("validation choice", choice["overall"], f"report {choice['round']}, best on the held-out images"),
        ("oracle best", best["overall"], f"report {best['round']}, best by labels: a bound, not a result"),
    )
    return [
        f"accuracy on the unseen domain {results['target']}, % (oracle):",
        *result_lines(rows),
        *class_lines(results["final"]["per_class"]),
    ]


def of_the_last_stage(rounds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The reports of the same stage as the last report."""
    return [record for record in rounds if record["stage"] == rounds[-1]["stage"]]


def choice_of(rounds: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The report of the last stage that is best on the held-out images. Among equals, the first one."""
    return max(of_the_last_stage(rounds), key=lambda record: record["validation"])


def summarise(config: GeneralizationConfig, rounds: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """The content of `results.json`: figures of the last report, the validation choice and the oracle best."""

    def figures(record: Mapping[str, Any]) -> dict[str, Any]:
        return {"round": record["round"], "overall": record["overall"], "class_mean": record["class_mean"]}

    last, chosen = rounds[-1], choice_of(rounds)
    best = max(of_the_last_stage(rounds), key=lambda record: record["overall"])
    return {
        "config": config.name,
        "method": config.method,
        "loss": config.model.loss,
        "loss_options": config.model.loss_options,
        "seed": config.seed,
        "target": config.target,
        "final": {**figures(last), "per_class": last["accuracy"]["per_class"], "validation": last["validation"]},
        "validation_choice": {**figures(chosen), "validation": chosen["validation"]},
        "oracle_best": figures(best),
        "rounds": [
            {key: value for key, value in record.items() if key not in ("accuracy", "hardness", "seen")}
            | {"seen": {name: found["accuracy"]["overall"] for name, found in record["seen"].items()}}
            for record in rounds
        ],
        "steps": last["steps"],
        "seconds": seconds,
    }
