"""`results.json` of a segmentation: the results of a run, for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from uda.segmentation.config import SegmentationConfig

_FIGURES = ("mean_iou", "pixel_accuracy", "iou", "subsets")
#: Figures that only the records of the rounds have.
_LEFT_OUT = ("confusion", "quality", "absent")


def summarise(
    config: SegmentationConfig, source: Mapping[str, Any] | None, rounds: Sequence[Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    """The content of `results.json` from the records of the source model and of the rounds.

    `final` is the last round, or the source model if there are no rounds. Figures that need target labels are None
    without them.
    """
    last = rounds[-1] if rounds else source
    label_free = best_round(rounds, [record["validators"].get("im") for record in rounds])
    best = best_round(rounds, [record["mean_iou"] for record in rounds])
    return {
        "config": config.name,
        "method": config.method,
        "selector": config.self_training.selector if rounds else None,
        "regularizer": config.self_training.regularizer if rounds else None,
        "seed": config.seed,
        "source_only": _model(source),
        "final": _model(last),
        "label_free_choice": {**label_free, "validator": "im"},
        "oracle_best": best,
        "warnings": [],
        "rounds": [{key: value for key, value in record.items() if key not in _LEFT_OUT} for record in rounds],
        "steps": sum(record["steps"] for record in (source, *rounds) if record),
        "seconds": seconds,
        "problems": [],
    }


def best_round(rounds: Sequence[Mapping[str, Any]], scores: Sequence[float | None]) -> dict[str, Any]:
    """The round with the highest score; the first one if several are equal."""
    known = [index for index, score in enumerate(scores) if score is not None]
    if not known:
        return {"round": None, "mean_iou": None}
    index = max(known, key=lambda position: scores[position])
    return {"round": rounds[index]["round"], "mean_iou": rounds[index]["mean_iou"]}


def _model(record: Mapping[str, Any] | None) -> dict[str, Any]:
    record = record or {}
    held_out = record.get("held_out")
    return {
        **{name: record.get(name) for name in _FIGURES},
        "held_out": None if held_out is None else {name: held_out[name] for name in _FIGURES},
        "validators": record.get("validators", {}),
    }
