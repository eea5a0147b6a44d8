"""`results.json`: the results of a run, for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.training.records import SOURCE, read_record, read_results

#: Figures that only the records of the rounds have.
_LEFT_OUT = ("accuracy", "gallery", *(f"{name}_per_class" for name in ("avh", "avc", "confidence", "feature_norm")))
_ACCURACY = ("class_mean", "overall", "per_class", "ece", "nll", "domains", "unknown")


def summarise(
    config: AdaptationConfig,
    source: Mapping[str, Any] | None,
    rounds: Sequence[Mapping[str, Any]],
    seconds: float,
    zero_shot: Mapping[str, Any] | None = None,
    choice: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of `results.json` from the records of the source model and of the rounds.

    `zero_shot` is the untouched network with the class vectors of `model.classifier`, None without them. `final` is the
    last round, or the source model if there are no rounds. `label_free_choice` and `oracle_best` name rounds, or None
    without rounds. Figures that need target labels are None without them. `warnings` holds the warnings of all reports,
    each with the name of its report. `steps` counts all training steps of this run, without those of a
    `source.checkpoint`.

    A run with several selectors has the figures of the one that was kept. `selectors` is the `choice` among them, and
    `steps` counts those of all.
    """
    training = config.self_training
    last = rounds[-1] if rounds else source
    label_free = best_round(rounds, [record["validators"].get(config.validator) for record in rounds])
    best = best_round(rounds, [record["class_mean"] for record in rounds])
    has_rounds = ADAPTATION_METHODS[config.method].rounds
    what = "round" if has_rounds else "report"
    told = [("source model", source or {"warnings": []}), *((f"{what} {record['round']}", record) for record in rounds)]
    return {
        "config": config.name,
        "method": config.method,
        "selector": (choice["kept"] if choice else training.selector) if has_rounds else None,
        "regularizer": training.regularizer if has_rounds else None,
        "seed": config.seed,
        "zero_shot": None if zero_shot is None else _model(zero_shot),
        "source_only": _model(source),
        "final": _model(last),
        "label_free_choice": {**label_free, "validator": config.validator},
        "oracle_best": best,
        "warnings": [f"{name}: {warning}" for name, record in told for warning in record["warnings"]],
        "rounds": [
            {key: value for key, value in record.items() if key not in _LEFT_OUT} | _accuracy(record)
            for record in rounds
        ],
        "selectors": choice,
        "steps": choice["steps"] if choice else _steps(config, source, rounds),
        "seconds": seconds,
        "problems": [],
    }


def _model(record: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**_accuracy(record), "validators": (record or {}).get("validators", {})}


def choose_selector(config: AdaptationConfig) -> dict[str, Any]:
    """The choice among the finished runs of `config.branches`, for `selectors` in `results.json`.

    The config's validator scores the last round of each. The highest score is kept, and the first one if several are
    equal or none is known. Target labels have no part in it.
    """
    runs, source = {}, {}
    for name, branch in config.branches.items():
        results, reports = read_results(branch.folder / "results.json")
        source = read_record(branch.folder / SOURCE)
        scores = [report["validators"].get(config.validator) for report in reports]
        runs[name] = {
            "folder": branch.folder.relative_to(config.folder).as_posix(),
            "score": scores[-1],
            **{key: results[key] for key in ("final", "label_free_choice", "oracle_best", "steps", "seconds")},
            "scores": scores,
            "class_means": [report["class_mean"] for report in reports],
        }
    known = {name: run["score"] for name, run in runs.items() if run["score"] is not None}
    twice = len(runs) - 1  # each run counts the source model that they share
    return {
        "kept": max(known, key=known.get) if known else next(iter(runs)),
        "validator": config.validator,
        "runs": runs,
        **{key: sum(run[key] for run in runs.values()) - twice * source[key] for key in ("steps", "seconds")},
    }


def _accuracy(record: Mapping[str, Any] | None) -> dict[str, Any]:
    known = (record or {}).get("accuracy") or {}
    return {name: known.get(name, {} if name in ("per_class", "domains") else None) for name in _ACCURACY}


def _steps(
    config: AdaptationConfig, source: Mapping[str, Any] | None, rounds: Sequence[Mapping[str, Any]]
) -> int | None:
    """Steps of all stages; None if a record has no steps. A round is a stage, an interval is a part of one."""
    stages = [record.get("steps") for record in (source or {}, *rounds)]
    if ADAPTATION_METHODS[config.method].adapts:
        stages = [stages[0], *stages[-1:]] if rounds else stages
    return None if None in stages else sum(stages)


def best_round(rounds: Sequence[Mapping[str, Any]], scores: Sequence[float | None]) -> dict[str, Any]:
    """The round with the highest score; the first one if several are equal."""
    known = [index for index, score in enumerate(scores) if score is not None]
    if not known:
        return {"round": None, "class_mean": None}
    index = max(known, key=lambda position: scores[position])
    return {"round": rounds[index]["round"], "class_mean": rounds[index]["class_mean"]}
