"""`results.json` of a run of domain generalisation, and figures that follow from the records of its reports."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uda.generalization.config import GeneralizationConfig

#: The three figures of a run: key in `results.json`, name, and explanation.
CHOICES = {
    "final": ("Final", "the last report; nothing is chosen"),
    "validation_choice": (
        "Validation choice",
        "the report of the last stage that is best on the seen domains' held-out images",
    ),
    "oracle_best": (
        "Oracle best",
        "the report of the last stage that is best by target labels: a bound, not a result",
    ),
}


def of_the_last_stage(rounds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The reports of the same stage as the last report."""
    return [record for record in rounds if record["stage"] == rounds[-1]["stage"]]


def choice_of(rounds: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The report of the last stage that is best on the held-out images. Among equals, the first one."""
    return max(of_the_last_stage(rounds), key=lambda record: record["validation"])


def summarise(
    config: GeneralizationConfig,
    rounds: Sequence[Mapping[str, Any]],
    seconds: float,
    zero_shot: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of `results.json`: figures of the last report, the validation choice and the oracle best.

    `zero_shot` is the untouched network with the class vectors of `model.classifier`, None without them.
    """

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
        "zero_shot": zero_shot and {key: zero_shot[key] for key in ("overall", "class_mean", "validation")},
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
        "problems": [],
    }


def hardness_seen(record: Mapping[str, Any]) -> dict[str, Any]:
    """AVH of the held-out images of all seen domains: `mean` and `histogram`, as `accuracy.hardness` gives them."""
    of_each = [found["hardness"] for found in record["seen"].values()]
    counts = np.array([hardness["histogram"] for hardness in of_each])
    mean = np.average([hardness["mean"] for hardness in of_each], weights=counts.sum(1))
    return {"mean": float(mean), "histogram": counts.sum(0).tolist()}


def seen_per_class(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Accuracy by class on the held-out images of all seen domains; None for a class without images."""
    confusion = np.sum([found["accuracy"]["confusion"] for found in record["seen"].values()], axis=0)
    shares = zip(record["accuracy"]["per_class"], confusion.diagonal(), confusion.sum(1), strict=True)
    return {name: float(right / total) if total else None for name, right, total in shares}
