"""The table in the terminal: one row a round, 100 columns at most."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

WIDTH = 100
MOST_CLASSES = 24
HEADER_EVERY = 10

# Heading, width, and whether the figure needs target labels.
OF_ROUNDS = (
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
#: For methods that choose nothing: their reports come after so many steps.
OF_INTERVALS = (
    ("report", 8, False),
    ("steps", 9, False),
    ("loss", 9, False),
    ("class mean", 12, True),
    ("overall", 9, True),
    ("gain", 11, True),
    ("seconds", 9, False),
)


def header(intervals: bool = False) -> list[str]:
    """The table's head: which figures are oracle, what they are, a rule."""
    columns = OF_INTERVALS if intervals else OF_ROUNDS
    oracle = "".join(f"{'oracle' if needs_labels else '':>{width}}" for _, width, needs_labels in columns)
    titles = "".join(f"{title:>{width}}" for title, width, _ in columns)
    return [oracle.rstrip(), titles, "-" * len(titles)]


def source_row(record: Mapping[str, Any], intervals: bool = False) -> str:
    """The row of the source model."""
    return _row({"round": "source", "report": "source", **_reached(record, None)}, intervals)


def round_row(record: Mapping[str, Any], source: Mapping[str, Any] | None) -> str:
    """The row of a round; `source` is the source model's record."""
    reached = _reached(record, source["class_mean"] if source else None)
    number = str(record["round"])
    if "portion" not in record:
        return _row(
            {"report": number, "steps": str(record["steps"]), "loss": fraction(record["loss"]), **reached}, True
        )
    cells = {
        "round": number,
        "portion": f"{record['portion']:.3g}",
        "selected": f"{record['selected']}",
        "TP rate": fraction(record["tp_rate"]),
        "AVC": fraction(record["avc"]),
        "confidence": fraction(record["confidence"]),
    }
    return _row({**cells, **reached}, False)


def _reached(record: Mapping[str, Any], before: float | None) -> dict[str, str]:
    """The cells that every row has."""
    return {
        "class mean": percent(record["class_mean"]),
        "overall": percent(record["overall"]),
        "gain": "" if before is None and "round" not in record else difference(record["class_mean"], before),
        "seconds": f"{record['seconds']:.0f}",
    }


def class_lines(per_class: Mapping[str, float | None]) -> list[str]:
    """Accuracy by class in per cent, wrapped; with many classes the lowest ones only."""
    known = [(name, share) for name, share in per_class.items() if share is not None]
    title = "% by class (oracle) "
    if len(known) > MOST_CLASSES:
        known = sorted(known, key=lambda entry: entry[1])[:MOST_CLASSES]
        title = f"% of the lowest {MOST_CLASSES} of {len(per_class)} classes (oracle) "
    # A class and its figure stay on one line: textwrap does not break at NO-BREAK SPACE.
    words = title + ", ".join(f"{name}: {100 * share:.1f}".replace(" ", "\u00a0") for name, share in known)
    return [line.replace("\u00a0", " ") for line in indented([words])]


def indented(texts: Iterable[str]) -> list[str]:
    """Texts as they stand under a row: indented and wrapped."""
    wrap = textwrap.TextWrapper(WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 10)
    return [line for text in texts for line in wrap.wrap(text)]


def part_lines(accuracy: Mapping[str, Any]) -> list[str]:
    """Class mean by target domain in per cent where there are several, and what is said of unknown classes."""
    lines = []
    if domains := accuracy.get("domains"):
        shown = ", ".join(f"{name}: {percent(figures['class_mean'])}" for name, figures in domains.items())
        lines.append(f"class mean, %, by target domain (oracle) {shown}")
    if unknown := accuracy.get("unknown"):
        told = ", ".join(f"{title} {fraction(unknown[key])}" for key, title in SEPARATION.items())
        lines.append(f"{unknown['images']} images of unknown classes (oracle); AUROC against the others: {told}")
    return [" " * 8 + line for text in lines for line in textwrap.wrap(text, WIDTH - 8, subsequent_indent="  ")]


#: What tells images of known classes from those of unknown ones, and its name for readers.
SEPARATION = {"auroc_confidence": "confidence", "auroc_avc": "AVC"}


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
                f"{what} {best['round']}, picked by target labels: a bound, not a result",
            ),
        ]
    told = [f"  {name:<18}{percent(value):>7}  {note}".rstrip() for name, value, note in lines]
    title = "class mean on the target, % (oracle):"
    if results["final"]["class_mean"] is None:
        told, title = [], "The target has no labels: no accuracy can be told."
    last = results["rounds"][-1] if results["rounds"] else results
    warnings = [f"warning: {warning}" for warning in last.get("warnings", [])]
    return [title, *told, *indented(warnings)]


def percent(share: float | None) -> str:
    """A fraction in per cent with two decimals, a dash where it is not known."""
    return "-" if share is None else f"{100 * share:.2f}"


def fraction(value: float | None, digits: int = 3) -> str:
    """A figure with three decimals, a dash where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def difference(share: float | None, reference: float | None) -> str:
    """Percentage points from `reference` to `share`, with its sign."""
    return "-" if share is None or reference is None else f"{100 * (share - reference):+.2f}"


def _row(cells: Mapping[str, str], intervals: bool) -> str:
    columns = OF_INTERVALS if intervals else OF_ROUNDS
    return "".join(f"{cells.get(title, ''):>{width}}" for title, width, _ in columns).rstrip()
