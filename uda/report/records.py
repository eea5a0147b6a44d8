"""The files of a run's `rounds/` folder, written whole or not at all. They are the report's only state."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uda.atomic import atomic_path, write_json
from uda.thresholds import PseudoLabels

PSEUDO_LABEL_COLUMNS = ("image", "label", "class", "score", "ratio", "selected")


def plain(value: Any) -> Any:
    """`value` as strict JSON holds it: NumPy values as Python's own, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def source_file(folder: Path) -> Path:
    """Where the record of the source model lies in a run's folder."""
    return folder / "rounds" / "source.json"


def round_folder(folder: Path, index: int) -> Path:
    """Where the files of round `index` lie in a run's folder."""
    return folder / "rounds" / f"{index:02d}"


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as strict JSON."""
    write_json(path, plain(record))


def read_record(path: Path) -> dict[str, Any] | None:
    """A record as it was written, or None if there is none or it is not whole."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The records of rounds 0, 1, ... up to the first that is missing or not whole."""
    rounds = []
    while True:
        record = read_record(round_folder(folder, len(rounds)) / "report.json")
        if record is None or record.get("round") != len(rounds):
            return rounds
        rounds.append(record)


def write_pseudo_labels(path: Path, pseudo: PseudoLabels, ids: Sequence[str], classes: Sequence[str]) -> None:
    """Write the label of every image, selected or not, as CSV.

    Columns: image (id), label (class index), class (name), score (the selector's, 9 significant digits, which
    hold a float32 exactly), ratio (score / lambda), selected (0 or 1).
    """
    if len(ids) != len(pseudo.labels):
        raise ValueError(f"{len(pseudo.labels)} pseudo-labels for {len(ids)} images")
    rows = zip(
        ids,
        pseudo.labels.tolist(),
        pseudo.scores.tolist(),
        pseudo.ratios.tolist(),
        pseudo.selected.tolist(),
        strict=True,
    )
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(PSEUDO_LABEL_COLUMNS)
        writer.writerows(
            (image, label, classes[label], f"{score:.9g}", f"{ratio:.9g}", int(selected))
            for image, label, score, ratio, selected in rows
        )
