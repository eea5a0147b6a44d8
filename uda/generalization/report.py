"""The report of a run of domain generalisation as it goes, and its results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uda.core.files import write_json, write_text
from uda.evaluation.accuracy import Accuracy
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import Domains
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.report.terminal import class_lines, percent
from uda.training.records import REPORTS, Records, plain

#: Title, width, whether it needs labels of the unseen domain.
COLUMNS = (
    ("report", 8, False),
    ("steps", 9, False),
    ("loss", 9, False),
    ("held out", 11, False),
    ("unseen", 9, True),
    ("class mean", 12, True),
    ("seconds", 9, False),
)
HEADER_EVERY = 10


@dataclass(frozen=True)
class Judgement:
    """How good a model is on one domain."""

    name: str
    """The domain's."""
    accuracy: Accuracy
    """On its held-out images; on all images of the unseen domain, where it is an oracle figure."""
    hardness: Mapping[str, Any]
    """`uda.evaluation.accuracy.hardness` of the same images."""


class Report:
    """Writes a run's `rounds/NN/report.json`, `tb/`, `report.html` and `results.json`, and prints a row an interval.

    `records` are all its state. The seen domains' held-out images choose `validation_choice` among the reports
    of the method's last stage: what stands before it is not yet the method's model. What is said of the unseen domain
    is oracle.

    Args:
        records: those of the run so far; TensorBoard's later ones are purged.
        config: its config.
        domains: seen and unseen.
        log: prints one line.
    """

    def __init__(
        self,
        records: Records,
        config: GeneralizationConfig,
        domains: Domains,
        log: Callable[[str], None] = print,
    ):
        self.records = records
        self.folder = records.folder
        self.config = config
        self.domains = domains
        self.log = log
        self._rows = 0
        self._writer = None
        self._first_step = len(records.reports())

    def interval(
        self,
        index: int,
        stage: int,
        steps: int,
        scalars: Mapping[str, float],
        judgements: Sequence[Judgement],
        seconds: float,
    ) -> None:
        """Report an interval of a stage: the seen domains' judgements, the unseen one's last."""
        *seen, unseen = judgements
        record = {
            "round": index,
            "stage": stage,
            "steps": steps,
            **scalars,
            "validation": sum(judgement.accuracy.overall for judgement in seen) / len(seen),
            "seen": {
                judgement.name: {"accuracy": judgement.accuracy.to_dict(), "hardness": judgement.hardness}
                for judgement in seen
            },
            "class_mean": unseen.accuracy.class_mean,
            "overall": unseen.accuracy.overall,
            "accuracy": unseen.accuracy.to_dict(),
            "hardness": unseen.hardness,
            "seconds": seconds,
        }
        self.records.write(REPORTS["rounds"].format(index), record)
        self._print(record)
        if self.config.report.tensorboard:
            self._events(record)

    def is_choice(self, index: int) -> bool:
        """Whether the report is better on the held-out images than all before it of the last stage."""
        found = self.records.reports()
        last = len(GENERALIZATION_METHODS[self.config.method].stages) - 1
        return found[-1]["stage"] == last and choice_of(found)["round"] == index

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write `report.html` and `results.json` from the records of all reports; returns the results."""
        rounds = self.records.reports()
        results = plain(summarise(self.config, rounds, seconds))
        if self.config.report.page:
            from uda.generalization.page import render_page

            write_text(self.folder / "report.html", render_page(self.config, self.domains, rounds, results))
        write_json(self.folder / "results.json", results)
        if self._writer is not None:
            self._writer.close()
        return results

    def _print(self, record: Mapping[str, Any]) -> None:
        if self._rows % HEADER_EVERY == 0:
            self.log("".join(f"{'oracle' if oracle else '':>{width}}" for _, width, oracle in COLUMNS))
            self.log("".join(f"{name:>{width}}" for name, width, _ in COLUMNS))
        self._rows += 1
        cells = (
            str(record["round"]),
            str(record["steps"]),
            f"{record['loss']:.3f}",
            percent(record["validation"]),
            percent(record["overall"]),
            percent(record["class_mean"]),
            f"{record['seconds']:.0f}",
        )
        self.log("".join(f"{cell:>{width}}" for cell, (_, width, _) in zip(cells, COLUMNS, strict=True)))

    def _events(self, record: Mapping[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tb"), purge_step=self._first_step or None)
        step = record["round"]
        self._writer.add_scalar("train/loss", record["loss"], step)
        self._writer.add_scalar("validation/mean", record["validation"], step)
        for name, judged in record["seen"].items():
            self._writer.add_scalar(f"validation/{name}", judged["accuracy"]["overall"], step)
        for name in ("overall", "class_mean"):
            self._writer.add_scalar(f"oracle/{name}", record[name], step)
        self._writer.flush()


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """A run's result in a few lines."""
    choice, best = results["validation_choice"], results["oracle_best"]
    rows = (
        ("final", results["final"]["overall"], "the last report"),
        ("validation choice", choice["overall"], f"report {choice['round']}, best on the held-out images"),
        ("oracle best", best["overall"], f"report {best['round']}, picked by target labels: a bound, not a result"),
    )
    return [
        f"accuracy on {results['target']}, which was never seen, % (oracle):",
        *(f"  {name:<18}{percent(value):>7}  {note}" for name, value, note in rows),
        *class_lines(results["final"]["per_class"]),
    ]


def of_the_last_stage(rounds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The reports of the stage that the last one is of."""
    return [record for record in rounds if record["stage"] == rounds[-1]["stage"]]


def choice_of(rounds: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The report that is best on the held-out images, of the last stage's; the first of several equals."""
    return max(of_the_last_stage(rounds), key=lambda record: record["validation"])


def summarise(config: GeneralizationConfig, rounds: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """The content of `results.json`: the last report, the validation's choice and the oracle's, each by its name."""

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
            | {"seen": {name: judged["accuracy"]["overall"] for name, judged in record["seen"].items()}}
            for record in rounds
        ],
        "steps": last["steps"],
        "seconds": seconds,
    }
