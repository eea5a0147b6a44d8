"""The terminal's table of a segmentation, one row per round, and the lines of the result."""

from collections.abc import Mapping, Sequence
from typing import Any

from uda.report.terminal import Column, difference, fraction, percent, result_lines

COLUMNS: Sequence[Column] = (
    Column("round", 6),
    Column("portion", 8, rank=4),
    Column("selected", 9, rank=3),
    Column("TP rate", 8, oracle=True, rank=2),
    Column("loss", 7, rank=7),
    Column("mIoU", 7, oracle=True),
    Column("gain", 7, oracle=True, rank=1),
    Column("pixels", 7, oracle=True, rank=5),
    Column("held out", 9, oracle=True, rank=1),
    Column("seconds", 8, rank=6),
    Column("left", 8),
)


def source_cells(record: Mapping[str, Any]) -> dict[str, str]:
    """The cells of the source model's row."""
    return {"round": "source", **_reached(record)}


def round_cells(record: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, str]:
    """The cells of a round's row; `before` is the record of the source model."""
    return {
        "round": str(record["round"]),
        "portion": f"{record['portion']:.3g}",
        "selected": percent(record["selected_share"]),
        "TP rate": percent(record["tp_rate"]),
        "loss": fraction(record["loss"]),
        "gain": difference(record["mean_iou"], before["mean_iou"] if before else None),
        **_reached(record),
    }


def _reached(record: Mapping[str, Any]) -> dict[str, str]:
    return {
        "mIoU": percent(record["mean_iou"]),
        "pixels": percent(record["pixel_accuracy"]),
        "held out": percent((record["held_out"] or {}).get("mean_iou")),
        "seconds": f"{record['seconds']:.0f}",
    }


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """The run's result in a few lines."""
    if results["final"]["mean_iou"] is None:
        return ["The target has no label maps, so its IoU is unknown."]
    choice, best = results["label_free_choice"], results["oracle_best"]
    lines = [("source only", results["source_only"]["mean_iou"], "")]
    if results["rounds"]:
        lines += [
            ("final", results["final"]["mean_iou"], "the last round"),
            (
                "label-free choice",
                choice["mean_iou"],
                f"round {choice['round']}, best by {choice['validator']}, a score without labels",
            ),
            ("oracle best", best["mean_iou"], f"round {best['round']}, best by labels: a bound, not a result"),
        ]
    held_out = (results["final"]["held_out"] or {}).get("mean_iou")
    if held_out is not None:
        lines.append(("held out", held_out, "the final model on images that it was not adapted to"))
    return ["mean IoU on the target, % (oracle):", *result_lines(lines)]
