"""The terminal's table of an adaptation, one row per round, and the lines of the result."""

from collections.abc import Mapping, Sequence
from typing import Any

from uda.core.plain_text import short_name
from uda.report.terminal import (
    MOST_OF_NAME,
    ZERO_SHOT_NAME,
    Column,
    difference,
    fraction,
    indented,
    percent,
    result_lines,
    zero_shot_lines,
)

#: In 80 columns: AVC and all of a lower rank.
OF_ROUNDS: Sequence[Column] = (
    Column("round", 6),
    Column("portion", 8, rank=5),
    Column("selected", 9, rank=1),
    Column("TP rate", 8, oracle=True, rank=3),
    Column("AVC", 6, rank=7),
    Column("AVH", 6, rank=10),
    Column("confidence", 11, rank=8),
    Column("norm", 7, rank=11),
    Column("loss", 7, rank=12),
    Column("classes", 8, rank=9),
    Column("class mean", 11, oracle=True),
    Column("overall", 8, oracle=True, rank=4),
    Column("gain", 8, oracle=True, rank=2),
    Column("seconds", 8, rank=6),
    Column("left", 8),
)
#: For methods without rounds. They report after a fixed number of steps.
OF_INTERVALS: Sequence[Column] = (
    Column("report", 8),
    Column("steps", 9, rank=1),
    Column("loss", 8, rank=4),
    Column("classes", 9, rank=6),
    Column("class mean", 12, oracle=True),
    Column("overall", 9, oracle=True, rank=3),
    Column("gain", 8, oracle=True, rank=2),
    Column("seconds", 9, rank=5),
    Column("left", 8),
)
#: Scores that separate images of known classes from those of unknown ones, and their names for readers.
SEPARATION = {"auroc_confidence": "confidence", "auroc_avc": "AVC"}


def zero_shot_cells(record: Mapping[str, Any]) -> dict[str, str]:
    """The cells of the row of the untouched network with the class vectors of `model.classifier`."""
    return {"round": ZERO_SHOT_NAME, "report": ZERO_SHOT_NAME, **_reached(record, None)}


def source_cells(record: Mapping[str, Any]) -> dict[str, str]:
    """The cells of the source model's row."""
    return {"round": "source", "report": "source", **_reached(record, None)}


def round_cells(record: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, str]:
    """The cells of a round's row; `before` is the record of the model that the gain is measured from."""
    reached = _reached(record, before["class_mean"] if before else None)
    number = str(record["round"])
    if "portion" not in record:
        return {"report": number, "steps": str(record["steps"]), "loss": fraction(record["loss"]), **reached}
    return {
        "round": number,
        "portion": f"{record['portion']:.3g}",
        "selected": f"{record['selected']}",
        "TP rate": percent(record["tp_rate"]),
        "AVC": fraction(record["avc"]),
        "AVH": fraction(record["avh"]),
        "confidence": fraction(record["confidence"]),
        "norm": fraction(record["feature_norm"], 1),
        "loss": fraction(record["loss"]),
        **reached,
    }


def _reached(record: Mapping[str, Any], before: float | None) -> dict[str, str]:
    """The cells that all rows have in common."""
    return {
        "classes": fraction(record.get("effective_classes"), 1),
        "class mean": percent(record["class_mean"]),
        "overall": percent(record["overall"]),
        "gain": "" if before is None and "round" not in record else difference(record["class_mean"], before),
        "seconds": f"{record['seconds']:.0f}",
    }


def part_lines(accuracy: Mapping[str, Any], width: int) -> list[str]:
    """Lines with the class mean of each of several target domains, in per cent, and with figures of unknown classes."""
    lines = []
    if domains := accuracy.get("domains"):
        shown = ", ".join(
            f"{short_name(name, MOST_OF_NAME)}: {percent(figures['class_mean'])}" for name, figures in domains.items()
        )
        lines.append(f"class mean, %, by target domain (oracle) {shown}")
    if unknown := accuracy.get("unknown"):
        told = ", ".join(f"{title} {fraction(unknown[key])}" for key, title in SEPARATION.items())
        lines.append(f"{unknown['images']} images of unknown classes (oracle), AUROC against the others: {told}")
    return indented(lines, width)


def selector_lines(choice: Mapping[str, Any] | None) -> list[str]:
    """The choice among several selectors in a sentence; none for a run with one selector."""
    if not choice:
        return []
    kept, validator = choice["kept"], choice["validator"]
    scores = {name: fraction(run["score"]) for name, run in choice["runs"].items()}
    if choice["runs"][kept]["score"] is None:
        return [
            f"selector {kept} was kept, the first one, because {validator}, a score without target labels, is unknown"
        ]
    others = ", ".join(f"{name} {score}" for name, score in scores.items() if name != kept)
    why = f"its last model has the best {validator}, a score without target labels"
    return [f"selector {kept} was kept, because {why}: {scores[kept]} ({others})"]


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """The run's result in a few lines."""
    choice, best = results["label_free_choice"], results["oracle_best"]
    what = "report" if results["rounds"] and "portion" not in results["rounds"][-1] else "round"
    zero_shot, before = ((results.get(name) or {}).get("class_mean") for name in ("zero_shot", "source_only"))
    chosen = f"best by {choice['validator']}, a score without labels"
    lines = [
        *zero_shot_lines(zero_shot),
        *([("source only", before, "")] if before is not None else []),
        ("final", results["final"]["class_mean"], f"the last {what}"),
    ]
    if results["rounds"]:
        lines += [
            ("label-free choice", choice["class_mean"], f"{what} {choice['round']}, {chosen}"),
            (
                "oracle best",
                best["class_mean"],
                f"{what} {best['round']}, best by labels: a bound, not a result",
            ),
        ]
    told = result_lines(lines)
    title = "class mean on the target, % (oracle):"
    if results["final"]["class_mean"] is None:
        told, title = indented(_scores(results)), "The target has no labels, so its accuracy is unknown."
        if choice["round"] is not None:
            last = choice["round"] == results["rounds"][-1]["round"]
            weights = f"weights {'final' if last else 'label_free'}"
            told += indented([f"label-free choice: {what} {choice['round']} ({weights}), {chosen}"])
    told += indented(selector_lines(results.get("selectors")))
    last = results["rounds"][-1] if results["rounds"] else results
    warnings = [f"warning: {warning}" for warning in last.get("warnings", [])]
    return [title, *told, *indented(warnings)]


def _scores(results: Mapping[str, Any]) -> list[str]:
    """The label-free score of each model, of a run that began with class vectors."""
    if not results.get("zero_shot"):
        return []
    name = results["label_free_choice"]["validator"]
    models = [(ZERO_SHOT_NAME, "zero_shot"), ("source model", "source_only"), ("final", "final")]
    scores = [(title, results[key].get("validators", {}).get(name)) for title, key in models]
    told = ", ".join(f"{title} {fraction(score)}" for title, score in scores if score is not None)
    return [f"score '{name}', higher is better: {told}"]
