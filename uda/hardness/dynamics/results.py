"""`results.json` of a supervised run."""

from collections.abc import Mapping, Sequence
from typing import Any

from uda.hardness.dynamics.config import SupervisedConfig


def summarise(config: SupervisedConfig, epochs: Sequence[Mapping[str, Any]], seconds: float | None) -> dict[str, Any]:
    """The content of `results.json` from the records of the epochs."""
    last = epochs[-1]
    return {
        "config": config.name,
        "backbone": config.model.backbone,
        "seed": config.seed,
        "final": {key: last[key] for key in ("overall", "per_class", "ece")},
        "epochs": [{key: value for key, value in epoch.items() if key != "per_class"} for epoch in epochs],
        "steps": last["steps"],
        "seconds": seconds,
        "problems": [],
    }
