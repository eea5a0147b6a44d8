"""The terminal's table of an adaptation, one row per round, and the lines of the result."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from uda.report.terminal import WIDTH, Column, difference, fraction, indented, percent, result_lines

OF_ROUNDS: Sequence[Column] = (
    ("round", 6, False),
    ("portion", 8, False),
    ("selected", 10, False),
    ("TP rate", 9, True),
    ("AVC", 7, False),
    ("confidence", 12, False),
    ("class mean", 12, True),
    ("overall", 9, True),
    ("gain", 11, True),
    ("seconds", 9, False),
)
#: For methods without rounds. They report after a fixed number of steps.
OF_INTERVALS: Sequence[Column] = (
    ("report", 8, False),
    ("steps", 9, False),
    ("loss", 9, False),
    ("class mean", 12, True),
    ("overall", 9, True),
    ("gain", 11, True),
    ("seconds", 9, False),
)
#: Scores that separate images of known classes from those of unknown ones, and their names for readers.
SEPARATION = {"auroc_confidence": "confidence", "auroc_avc": "AVC"}


def source_cells(record: Mapping[str, Any]) -> dict[str, str]:
    """The cells of the source model's row."""
    return {"round": "source", "report": "source", **_reached(record, None)}


def round_cells(record: Mapping[str, Any], source: Mapping[str, Any] | None) -> dict[str, str]:
    """The cells of a round's row; `source` is the source model's record."""
    reached = _reached(record, source["class_mean"] if source else None)
    number = str(record["round"])
    if "portion" not in record:
        return {"report": number, "steps": str(record["steps"]), "loss": fraction(record["loss"]), **reached}
    return {
        "round": number,
        "portion": f"{record['portion']:.3g}",
        "selected": f"{record['selected']}",
        "TP rate": fraction(record["tp_rate"]),
        "AVC": fraction(record["avc"]),
        "confidence": fraction(record["confidence"]),
        **reached,
    }


def _reached(record: Mapping[str, Any], before: float | None) -> dict[str, str]:
    """The cells that all rows have in common."""
    return {
        "class mean": percent(record["class_mean"]),
        "overall": percent(record["overall"]),
        "gain": "" if before is None and "round" not in record else difference(record["class_mean"], before),
        "seconds": f"{record['seconds']:.0f}",
    }


def part_lines(accuracy: Mapping[str, Any]) -> list[str]:
    """Lines with the class mean of each of several target domains, in per cent, and with figures of unknown classes."""
    lines = []
    if domains := accuracy.get("domains"):
        shown = ", ".join(f"{name}: {percent(figures['class_mean'])}" for name, figures in domains.items())
        lines.append(f"class mean, %, by target domain (oracle) {shown}")
    if unknown := accuracy.get("unknown"):
        told = ", ".join(f"{title} {fraction(unknown[key])}" for key, title in SEPARATION.items())
        lines.append(f"{unknown['images']} images of unknown classes (oracle), AUROC against the others: {told}")
    return [" " * 8 + line for text in lines for line in textwrap.wrap(text, WIDTH - 8, subsequent_indent="  ")]


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """The run's result in a few lines."""
    choice, best = results["label_free_choice"], results["oracle_best"]
    what = "report" if results["rounds"] and "portion" not in results["rounds"][-1] else "round"
    before = results["source_only"]["class_mean"]
    lines = [
        *([("source only", before, "")] if before is not None else []),
        ("final", results["final"]["class_mean"], f"the last {what}"),
    ]
    if results["rounds"]:
        lines += [
            ("label-free choice", choice["class_mean"], f"{what} {choice['round']}, by {choice['validator']}"),
            (
                "oracle best",
                best["class_mean"],
                f"{what} {best['round']}, best by target labels: a bound, not a result",
            ),
        ]
    told = result_lines(lines)
    title = "class mean on the target, % (oracle):"
    if results["final"]["class_mean"] is None:
        told, title = [], "The target has no labels, so its accuracy is unknown."
    last = results["rounds"][-1] if results["rounds"] else results
    warnings = [f"warning: {warning}" for warning in last.get("warnings", [])]
    return [title, *told, *indented(warnings)]
