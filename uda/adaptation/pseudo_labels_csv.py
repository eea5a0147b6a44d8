"""`pseudo_labels.csv`: the pseudo-label of every target image in a round, and whether it was selected."""

import csv
from collections.abc import Sequence
from pathlib import Path

from uda.core.files import atomic_path
from uda.selection.thresholds import PseudoLabels

PSEUDO_LABEL_COLUMNS = ("image", "label", "class", "score", "ratio", "selected")


def write_pseudo_labels(path: Path, pseudo: PseudoLabels, ids: Sequence[str], classes: Sequence[str]) -> None:
    """Write the label of every image, selected or not, as CSV.

    Columns: image (id), label (class number), class (name), score (of the selector, 9 significant digits, which
    represent a float32 exactly), ratio (score / lambda), selected (0 or 1).
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
