"""The data of a page's script: what its slider, gallery, map and confusion matrix show."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS
from uda.report.feature_map import TITLES
from uda.report.html import clean_name
from uda.report.image_table import ImageTable

#: Above this number of classes the true class is no filter, and the confusion matrix becomes a list of pairs.
MOST_CLASSES = 40
BINS = 24
#: Bounds the numbers in all histograms together: classes * rounds * bins * 2.
MOST_NUMBERS = 80_000
MOST_STATES = 24
VERSION = 1


@dataclass(frozen=True)
class State:
    """The class of every target image at one point of a run: pseudo-labels of a round, or a model's predictions."""

    name: str
    title: str
    label: np.ndarray
    """(N,) class numbers."""
    sureness: np.ndarray
    """(N,) larger is surer: the ratio of score to lambda, or the probability."""
    hardness: np.ndarray
    """(N,) AVH."""
    chosen: np.ndarray | None = None
    """(N,) 0 nobody, 1 only softmax, 2 only the selector, 3 both; None if the state chooses nothing."""
    flipped: np.ndarray | None = None
    """(N,) bool, whether the class differs from that of the state before; None for the first state."""


def states_of(source: ImageTable | None, reports: Mapping[int, ImageTable], unit: str) -> list[State]:
    """The states of a run in order: source model, each choice, and the final model's predictions.

    Args:
        source: table of the source model's predictions; None without one.
        reports: tables by number of report.
        unit: "round" or "report".
    """
    found, before = [], source
    for number, table in sorted(reports.items()):
        if table.get("selected") is not None:
            chosen = 2 * table.get("selected").astype(np.uint8) + table.get("softmax_selected").astype(np.uint8)
            by = "the source model" if number == 0 else f"the model of round {number - 1}"
            # The round's own table has the angles after training; the labels come from the model before it.
            avh = (before if before is not None else table).get("avh")
            title = f"Pseudo-labels of round {number}, by {by}"
            found.append(State(f"round {number}", title, table.get("pseudo_label"), table.get("ratio"), avh, chosen))
        elif number != max(reports):
            found.append(_predictions(f"{unit} {number}", f"Predictions after {unit} {number}", table))
        before = table
    if source is not None and not any(state.chosen is not None for state in found):
        found.insert(0, _predictions("source", "Predictions of the source model", source))
    if reports:
        found.append(_predictions("final", "Predictions of the last model", reports[max(reports)]))
    # A state that is left out counts as the one before, because flips are those of a single round.
    shown = evenly(len(found), MOST_STATES)
    return [found[place] if place == 0 else _with_flips(found[place], found[place - 1].label) for place in shown]


def _predictions(name: str, title: str, table: ImageTable) -> State:
    return State(name, title, table.get("prediction"), table.get("probability"), table.get("avh"))


def _with_flips(state: State, before: np.ndarray) -> State:
    return State(state.name, state.title, state.label, state.sureness, state.hardness, state.chosen,
                 state.label != before)  # fmt: skip


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def truths_of(classes: Sequence[str], truth: np.ndarray | None) -> tuple[list[str], np.ndarray | None]:
    """Names of what is known of an image's true class, and each image's place in them, (N,).

    With many classes the names only tell right from wrong. Then the places depend on the state, and are None here.
    """
    if truth is None:
        return ["not labelled"], None
    if len(classes) > MOST_CLASSES:
        return ["right", "wrong", "not labelled"], None
    places = np.select([truth == UNKNOWN_CLASS, truth == NO_LABEL], [len(classes), len(classes) + 1], truth)
    return [*classes, "another class", "not labelled"], places


def cube(state: State, classes: Sequence[str], truth: np.ndarray | None) -> list[int]:
    """How many images have each combination of class, truth, choice and change: `[key, count, key, count, ...]`.

    The key is `((label * T + truth) * 4 + chosen) * 2 + flipped`, for T names of truths.
    """
    names, places = truths_of(classes, truth)
    if truth is None:
        places = np.zeros(len(state.label), np.int64)
    elif places is None:
        places = np.select([truth == NO_LABEL, truth == state.label], [2, 0], 1)
    chosen = np.zeros(len(state.label), np.int64) if state.chosen is None else state.chosen.astype(np.int64)
    flipped = np.zeros(len(state.label), np.int64) if state.flipped is None else state.flipped.astype(np.int64)
    keys, counts = np.unique(((state.label * len(names) + places) * 4 + chosen) * 2 + flipped, return_counts=True)
    return np.stack([keys, counts], 1).ravel().tolist()


def histograms(
    reports: Mapping[int, ImageTable], records: Mapping[int, Mapping[str, Any]], classes: Sequence[str]
) -> dict[str, Any] | None:
    """For each round and class: the histogram of scores, right and wrong, and figures of the selected images."""
    choosing = {number: table for number, table in sorted(reports.items()) if table.get("score") is not None}
    if not choosing:
        return None
    bins = BINS if len(classes) * len(choosing) * BINS * 2 <= MOST_NUMBERS else BINS // 2
    numbers = list(choosing)
    kept = [numbers[place] for place in evenly(len(numbers), max(2, MOST_NUMBERS // (len(classes) * bins * 2)))]
    scores = [choosing[number].get("score") for number in kept]
    low, high = (float(edge(score.min() if edge is min else score.max() for score in scores)) for edge in (min, max))
    high = high if high > low else low + 1e-6 * max(1.0, abs(low))
    edges = np.linspace(low, high, bins + 1)
    return {
        "bins": bins,
        "rounds": [
            {
                "round": number,
                "range": [low, high],
                "classes": _classes_of(choosing[number], records.get(number, {}), classes, edges),
            }
            for number in kept
        ],
    }


def _classes_of(
    table: ImageTable, record: Mapping[str, Any], classes: Sequence[str], edges: np.ndarray
) -> list[dict[str, Any]]:
    label, truth, bins = table.get("pseudo_label"), table.get("label"), len(edges) - 1
    place = np.clip(np.searchsorted(edges, table.get("score"), "right") - 1, 0, bins - 1)

    def counts(which: np.ndarray) -> np.ndarray:
        return np.bincount((label * bins + place)[which], minlength=len(classes) * bins).reshape(-1, bins)

    if truth is None:
        right = wrong = None
        unknown = counts(np.ones(len(label), bool))
    else:
        right, wrong = counts(truth == label), counts((truth != label) & (truth != NO_LABEL))
        unknown = counts(truth == NO_LABEL)
    images = np.bincount(label, minlength=len(classes))
    selected = np.bincount(label[table.get("selected")], minlength=len(classes))

    def of(key: str, name: str) -> float | None:
        return rounded((record.get(key) or {}).get(name))

    return [
        {
            "images": int(images[number]),
            "selected": int(selected[number]),
            "lambda": of("lambda", name),
            "tp_rate": of("tp_rate_per_class", name),
            "avh": of("avh_per_class", name),
            "avc": of("avc_per_class", name),
            "confidence": of("confidence_per_class", name),
            "norm": of("feature_norm_per_class", name),
            "right": None if right is None else right[number].tolist(),
            "wrong": None if wrong is None else wrong[number].tolist(),
            "unknown": unknown[number].tolist(),
        }
        for number, name in enumerate(classes)
    ]


def rounded(value: float | None) -> float | None:
    """A number with five significant digits, as many as a page shows. None if it is unknown or not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def pictures_data(
    jpegs: Mapping[int, bytes],
    states: Sequence[State],
    paths: Sequence[str],
    classes: Sequence[str],
    truth: np.ndarray | None,
) -> dict[str, Any]:
    """The pictures of the gallery, with their class and place in the order at every state.

    `truth` is the place in `truths_of` if these are classes. Else it is the label: a class number, -1 if unknown, -2 if
    the source lacks the class.
    """
    rows = np.array(list(jpegs), dtype=np.int64)
    _, places = truths_of(classes, truth)
    shown = truth if places is None else places
    return {
        "jpegs": [base64.b64encode(jpeg).decode("ascii") for jpeg in jpegs.values()],
        "rows": rows.tolist(),
        "paths": [clean_name(paths[row]) for row in rows],
        "truth": shown[rows].tolist() if truth is not None else [0] * len(rows),
        "states": [
            {
                "label": state.label[rows].tolist(),
                "score": [rounded(float(value)) for value in state.sureness[rows]],
                "avh": [rounded(float(value)) for value in state.hardness[rows]],
                "chosen": state.chosen[rows].tolist() if state.chosen is not None else [0] * len(rows),
                "flipped": state.flipped[rows].astype(int).tolist() if state.flipped is not None else [0] * len(rows),
                "threshold_ratio": None
                if state.chosen is None
                else [rounded(float(value)) for value in state.sureness[rows]],
            }
            for state in states
        ],
    }


def map_data(table: ImageTable) -> dict[str, Any]:
    """The points of the map, see `uda.report.feature_map`. Places become whole numbers from 0 to 65,535."""
    truth, row, chosen = (table.get(name) for name in ("label", "row", "selected"))
    target = row >= 0
    known = truth is not None and bool((truth[target] != NO_LABEL).any())
    coded = np.select([truth == UNKNOWN_CLASS, truth == NO_LABEL], [65534, 65535], truth)
    return {
        "method": TITLES[table.about["projection"]],
        "count": len(table),
        "x": _packed(_whole(table.get("x")), "<u2"),
        "y": _packed(_whole(table.get("y")), "<u2"),
        "label": _packed(np.where(target, table.get("prediction"), truth), "<u2"),
        "truth": _packed(coded, "<u2") if known else None,
        "domain": _packed(table.domain, "u1"),
        "domains": [
            {"name": name, "target": bool(target[table.domain == place].any())}
            for place, name in enumerate(table.domains)
        ],
        "chosen": None if chosen is None else _packed(np.where(target, chosen, 2), "u1"),
        "row": _packed(row, "<i4"),
    }


def _whole(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.round((values - low) / max(high - low, 1e-12) * 65535)


def _packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.asarray(values).astype(kind).tobytes()).decode("ascii")


def as_script(data: Mapping[str, Any]) -> str:
    """JSON for a `<script>` element: no character in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
