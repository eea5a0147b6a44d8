"""The page of a run: the parts that all kinds of run share, from the records and tables of its folder."""

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS
from uda.report import figures, page_data
from uda.report.html import clean_name, duration, template
from uda.report.image_table import ImageTable
from uda.report.page_data import State
from uda.report.pictures import data_uri, notable_rows
from uda.report.run_record import RunRecord
from uda.training.config import RunConfig, flatten, option_defaults

#: Lists of classes for reading are cut after this number.
MOST_NAMED = 5
#: Rows of a heat map, and bars of a figure.
MOST_ROWS = 40
MOST_BARS = 20
#: A fall by this much is told at the top, as a share.
NOTABLE_LOSS = 0.02
#: Seconds after which a browser loads the page of a running job again.
RELOAD_SECONDS = 20
#: Pairs of classes in the list that stands for a large confusion matrix, and pictures beside each.
MOST_PAIRS, PAIR_PICTURES = 20, 4
#: Pictures of the gallery that are there without a script.
STATIC_PICTURES = 24
#: A page with more bytes is made again with fewer pictures.
MOST_PAGE_BYTES = 4_900_000
RELIABILITY_BINS = 15
NAME_LENGTH = 24
NO_HEADLINE = "There is no headline, because the records of this run are incomplete or contradict one another."


@dataclass(frozen=True)
class Column:
    """A column of a table for readers."""

    title: str
    help: str = ""
    oracle: bool = False


@dataclass(frozen=True)
class Card:
    """A figure at the top of a page."""

    title: str
    value: str
    note: str
    change: str = ""
    """Difference to the source model."""
    oracle: bool = False
    main: bool = False
    """Whether it is the figure that stands for the run."""


@dataclass(frozen=True)
class Curve:
    """A figure over the rounds: drawn for readers without a script, and its data for the script."""

    id: str
    title: str
    x: Sequence[float]
    series: Mapping[str, Sequence[float | None]]
    ylabel: str
    xlabel: str
    baselines: Sequence[tuple[str, float]] = ()
    """Models before the first report, each with its value: horizontal lines."""

    @property
    def known(self) -> bool:
        """Whether there is a value to draw."""
        return any(value is not None for values in self.series.values() for value in values)

    @property
    def description(self) -> str:
        """Text for readers who do not see the figure: first and last value of each series."""
        ends = []
        for name, values in self.series.items():
            known = [value for value in values if value is not None]
            ends += [f"{name} from {known[0]:.4g} to {known[-1]:.4g}"] if known else []
        return f"{self.title} by {self.xlabel}: {'; '.join(ends)}."

    def svg(self) -> str:
        """The figure for readers without a script."""
        figure = figures.curves_figure(self.x, self.series, self.ylabel, self.baselines, self.xlabel)
        return figures.to_svg(figure, self.id, self.description)

    def data(self) -> dict[str, Any]:
        """The figure for the script."""
        return {
            "id": self.id,
            "title": self.title,
            "ylabel": self.ylabel,
            "xlabel": self.xlabel,
            "x": list(self.x),
            "series": [
                {"name": name, "values": [page_data.rounded(value) for value in values]}
                for name, values in self.series.items()
            ],
            "baselines": [{"name": name, "value": value} for name, value in self.baselines],
        }


@dataclass(frozen=True)
class Words:
    """What a kind of run calls what its page tells of."""

    target: str = "target"
    """Goes before "images" for those that the run is measured on."""
    source: str = "source"
    """The same for those that the map shows beside them."""
    final: str = "final"
    """The figures of the last model, in the legends of calibration."""
    why_marked: str | None = "need target labels. Training and the label-free choice never see them."
    """Why figures are marked as oracle; None if no figure is."""
    mark: str = " (oracle)"
    """Mark of such a figure in a sentence or a title."""


@dataclass
class RunPage:
    """What a kind of run says about itself. `render` adds what all kinds share."""

    record: RunRecord
    config: RunConfig | None
    """The run's config; None if this version cannot read it."""
    classes: tuple[str, ...]
    unit: str
    """"round", "report" or "epoch"."""
    heading: str
    subtitle: str
    selector: str | None = None
    lead: tuple[str, str, str] = ("", "", "")
    """A sentence, the figure in it that stands out, and the rest of the sentence."""
    cards: list[Card] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    """The table of the rounds. The first cell of a row is its head."""
    rows_text: str = ""
    """What a reader should know of this table."""
    curves: list[Curve] = field(default_factory=list)
    main_curve: str = ""
    """Id of the curve at the top."""
    class_columns: list[Column] = field(default_factory=list)
    class_rows: dict[str, list[tuple[str, float | None]]] = field(default_factory=dict)
    """For each class its cells: text, and the number to sort by."""
    heat: list[dict[str, Any]] = field(default_factory=list)
    shares: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Shares of the classes by what is counted, such as the predictions of the final model."""
    shares_text: str = ""
    confusion: Sequence[Sequence[int]] | None = None
    extra: list[dict[str, Any]] = field(default_factory=list)
    """More sections: `title`, and `text`, `figures` (SVG) or `columns` and `rows`. `links` are addresses by
    the head of a row."""
    facts: list[tuple[str, str]] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    """Terms of the page and what they mean."""
    words: Words = Words()
    reference: tuple[str, Mapping[str, float | None]] | None = None
    """When a model had the accuracies by class that the newest ones are compared with, and these accuracies. None:
    those of the source model or of the first report."""
    compared: Mapping[str, ImageTable] = field(default_factory=dict)
    """Tables whose calibration is drawn beside that of the newest model; none: that of the source model."""
    progress: tuple[int, int] | None = None
    """How many rounds, reports or epochs are done, and of how many. None: by the settings of self-training."""
    files: str = "results.json, rounds/NN/report.json, rounds/NN/images.parquet"
    """The run's files with the data of the page."""

    @property
    def labelled(self) -> bool:
        """Whether any target label is known."""
        truth = self.record.truth
        if truth is not None:
            return bool((truth >= 0).any())
        return any(report.get("accuracy") for report in self.record.models)

    def render(self) -> str:
        """The page: one HTML file that needs no others. It has as many of the record's pictures as fit.

        In a hurry only the first curve is drawn for readers without a script, because drawing takes seconds.
        """
        page = self._render()
        while (over := len(page.encode()) - MOST_PAGE_BYTES) > 0 and self.record.pictures:
            jpegs = dict(self.record.pictures)
            while over > 0 and jpegs:
                over -= 4 * len(jpegs.popitem()[1]) // 3  # base64; what the page tells of a picture comes on top
            self.record = replace(self.record, pictures=jpegs)
            page = self._render()
        return page

    def _render(self) -> str:
        record = self.record
        states = page_data.states_of(record.source_table, record.tables, self.unit)
        truth = record.truth if self.labelled else None
        drawn = [curve for curve in self.curves if curve.known]
        main = next((curve for curve in drawn if curve.id == self.main_curve), None)
        calibration = self._calibration()
        drawn_later = [curve for curve in calibration["curves"] if curve.known]
        data = self._data(states, truth, [*drawn, *drawn_later])
        return template("run.html").render(
            page=self,
            record=record,
            labelled=self.labelled,
            status=self._status(),
            written=time.strftime("%Y-%m-%d %H:%M:%S"),
            main=main,
            curves=[curve for curve in drawn if curve is not main],
            attention=self.attention(),
            histograms=_drawn_histograms(data["selection"], self.classes),
            heat=[_readable(measure, self.classes) for measure in self.heat],
            shares=self._shares_figure(),
            confusion=self._confusion_cells() if len(self.classes) <= page_data.MOST_CLASSES else None,
            pairs=self._pairs(truth) if len(self.classes) > page_data.MOST_CLASSES else [],
            gallery=self._static_gallery(states, truth),
            map=self._static_map(),
            calibration=calibration,
            changed=self._changed(),
            data=page_data.as_script(data),
        )

    def _status(self) -> str | None:
        """One sentence for a run that is not finished."""
        record = self.record
        if record.finished:
            return None
        number, total = self.progress or (len(record.reports), self._total())
        done = f"{number} {self.unit}{'' if number == 1 else 's'} done"
        if total and (record.reports or number):
            done = f"{self.unit} {number} of {total} done"
        if not (record.reports or number):
            done = f"no {self.unit} done yet"
        if record.running:
            left = "" if record.seconds_left is None else f", about {duration(record.seconds_left)} left"
            return f"This run goes on: {done}{left}."
        again = f", and makes {self.unit} {record.unsaved[0]} again" if record.unsaved else ""
        return f"This run is not finished: {done}. The command that started it resumes it{again}."

    def _total(self) -> int | None:
        training = self.record.settings.get("self_training")
        if self.selector and isinstance(training, dict) and isinstance(training.get("rounds"), int):
            return training["rounds"]
        return None

    # What a reader should look at first

    def attention(self) -> list[str]:
        """What got worse, and what was never chosen."""
        found, mark = [], self.words.mark
        reports, source = self.record.reports, self.record.source
        last = reports[-1] if reports else None
        before = (source or {}).get("accuracy") or {}
        after = (last or {}).get("accuracy") or {}
        whose = "with the source model"
        if not before and len(reports) > 1:
            before, whose = reports[0].get("accuracy") or {}, f"at {self.unit} {reports[0]['round']}"
        if self.reference is not None:
            whose, before = self.reference[0], {"per_class": self.reference[1]}
        fallen = []
        for name, now in (after.get("per_class") or {}).items():
            then = (before.get("per_class") or {}).get(name)
            if now is not None and then is not None and then - now >= NOTABLE_LOSS:
                fallen.append((then - now, name, then, now))
        fallen.sort(reverse=True)
        for _, name, then, now in fallen[:MOST_NAMED]:
            found.append(f"Class {short_name(name)} fell from {100 * then:.1f} % {whose} to {100 * now:.1f} %{mark}.")
        if len(fallen) > MOST_NAMED:
            found.append(
                f"{len(fallen) - MOST_NAMED} more classes fell by {100 * NOTABLE_LOSS:.0f} points or more{mark}."
            )
        chosen = [report["selected_per_class"] for report in reports if report.get("selected_per_class")]
        if chosen:
            never = [name for name in chosen[0] if not any(counts.get(name) for counts in chosen)]
            if never:
                found.append(f"Never chosen: {listed(never)}.")
        tables = [table.get("selected") for table in self.record.tables.values() if table.get("selected") is not None]
        if tables and len(tables) == len(chosen):
            left = int((~np.logical_or.reduce(tables)).sum())
            if left:
                found.append(f"{left:,} of {len(tables[0]):,} {self.words.target} images were not chosen in any round.")
        return found

    # Parts

    def _data(self, states: Sequence[State], truth: np.ndarray | None, curves: Sequence[Curve]) -> dict[str, Any]:
        record, last = self.record, self.record.last_table
        names, places = page_data.truths_of(self.classes, truth)
        paths = last.paths if last is not None else []
        few = len(self.classes) <= page_data.MOST_CLASSES
        reports = {report["round"]: report for report in record.reports if "round" in report}
        return {
            "version": page_data.VERSION,
            "classes": [clean_name(name) for name in self.classes],
            "labelled": self.labelled,
            "selector": self.selector,
            "unit": self.unit,
            "words": {"target": self.words.target, "source": self.words.source},
            "running": {"reload_seconds": RELOAD_SECONDS} if record.running else None,
            "curves": [curve.data() for curve in curves],
            "selection": page_data.histograms(record.tables, reports, self.classes),
            "states": [
                {
                    "name": state.name,
                    "title": state.title,
                    "chooses": state.chosen is not None,
                    "cube": page_data.cube(state, self.classes, truth),
                }
                for state in states
            ],
            "truths": [clean_name(name) for name in names],
            "truth_is_class": places is not None,
            "pictures": page_data.pictures_data(record.pictures, states, paths, self.classes, truth),
            "map": page_data.map_data(record.map) if record.map is not None else None,
            "confusion": {"state": len(states) - 1, "counts": self.confusion}
            if self.confusion is not None and few and states
            else None,
        }

    def _shares_figure(self) -> dict[str, str] | None:
        """Bars of the shares of the classes. With many classes those whose shares differ most."""
        if not self.shares or self.record.hurried:
            return None
        names = _unique(self.classes)
        series = {
            title: dict(zip(names, (values.get(name) for name in self.classes), strict=True))
            for title, values in self.shares.items()
        }
        note = ""
        if len(names) > MOST_BARS:

            def width(name: str) -> float:
                known = [values[name] for values in series.values() if values[name] is not None]
                return max(known, default=0) - min(known, default=0)

            kept = set(sorted(names, key=width, reverse=True)[:MOST_BARS])
            names = [name for name in names if name in kept]
            note = (
                f"The {MOST_BARS} of {len(self.classes)} classes whose shares differ most. The table has all classes."
            )
        figure = figures.bars_figure(series, names, "% of the images")
        return {"svg": figures.to_svg(figure, "shares", f"Shares of the classes: {', '.join(series)}."), "note": note}

    def _confusion_cells(self) -> list[list[dict[str, Any]]] | None:
        """The confusion matrix for a table. The depth of a cell's colour makes 1 % visible."""
        if self.confusion is None:
            return None
        counts = np.asarray(self.confusion, float)
        totals = counts.sum(1, keepdims=True)
        shares = counts / np.maximum(totals, 1)
        return [
            [
                {
                    "count": int(counts[row, column]),
                    "share": float(shares[row, column]),
                    "text": _cell_text(shares[row, column]),
                    "depth": round(float(np.clip(1 + np.log10(max(shares[row, column], 1e-9)) / 3, 0, 1)), 3),
                    "right": row == column,
                }
                for column in range(len(counts))
            ]
            for row in range(len(counts))
        ]

    def _pairs(self, truth: np.ndarray | None) -> list[dict[str, Any]]:
        """The most confused pairs of classes, with pictures."""
        if self.confusion is None:
            return []
        counts = np.asarray(self.confusion)
        wrong = counts - np.diag(counts.diagonal())
        order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
        predicted = None if self.record.last_table is None else self.record.last_table.get("prediction")
        pairs = []
        for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
            if not wrong[row, column]:
                break
            rows = [] if truth is None or predicted is None else [
                one for one in self.record.pictures if truth[one] == row and predicted[one] == column
            ]  # fmt: skip
            pairs.append(
                {
                    "truth": clean_name(self.classes[row]),
                    "label": clean_name(self.classes[column]),
                    "count": int(wrong[row, column]),
                    "share": float(wrong[row, column] / max(counts[row].sum(), 1)),
                    "pictures": [
                        {"src": data_uri(self.record.pictures[one]), "path": self.record.last_table.paths[one]}
                        for one in rows[:PAIR_PICTURES]
                    ],
                }
            )
        return pairs

    def _static_gallery(self, states: Sequence[State], truth: np.ndarray | None) -> list[dict[str, Any]]:
        """The first pictures of the gallery, for readers without a script."""
        if not states or not self.record.pictures:
            return []
        state, last = states[-1], self.record.last_table
        shown = []
        for row in list(self.record.pictures)[:STATIC_PICTURES]:
            label = int(state.label[row])
            is_class = None if truth is None or truth[row] == NO_LABEL else int(truth[row])
            shown.append(
                {
                    "src": data_uri(self.record.pictures[row]),
                    "path": last.paths[row],
                    "label": clean_name(self.classes[label]),
                    "truth": None if is_class is None
                    else "another class" if is_class == UNKNOWN_CLASS else clean_name(self.classes[is_class]),
                    "verdict": "" if is_class is None else "right" if is_class == label else "wrong",
                    "sureness": f"{state.sureness[row]:.3f}",
                }
            )  # fmt: skip
        return shown

    def _static_map(self) -> dict[str, str] | None:
        table = self.record.map
        if table is None or len(table) == 0:
            return None
        points, target = np.stack([table.get("x"), table.get("y")], 1), table.get("row") >= 0
        groups = {self.words.source: points[~target], self.words.target: points[target]}
        png = figures.to_png(figures.map_figure({name: group for name, group in groups.items() if len(group)}))
        return {
            "png": base64.b64encode(png).decode("ascii"),
            "text": f"{page_data.TITLES[table.about['projection']]} of the features of {len(table):,} images by the "
            f"final model: {int((~target).sum()):,} {self.words.source} images and {int(target.sum()):,} "
            f"{self.words.target} images.",
        }

    def _calibration(self) -> dict[str, Any]:
        """Reliability and risk-coverage of the first and the last model, agreement and flips by round."""
        record = self.record
        found: dict[str, Any] = {"figures": [], "curves": [], "text": ""}
        first, last, mark = record.source_table, record.last_table, self.words.mark
        if last is None:
            return found
        models = {"source": first} if first is not None and first is not last else {}
        models = dict(self.compared) or models
        models[self.words.final if record.finished or self.compared else "newest"] = last
        known = last.get("label") is not None and (last.get("label") >= 0).any()
        if known and not record.hurried:
            bins = {name: _reliability(table) for name, table in models.items()}
            figure = figures.reliability_figure(bins)
            text = "; ".join(f"{name}: {_reading(points)}" for name, points in bins.items())
            found["figures"].append(
                (f"Reliability{mark}", figures.to_svg(figure, "reliability", f"Reliability. {text}."))
            )
            risks = {name: _risk(table, "probability") for name, table in models.items()}
            risks["by AVC"] = _risk(last, "avc")
            figure = figures.risk_figure(risks)
            text = "; ".join(f"{name} {100 * risk[-1]:.1f} % wrong of all" for name, (_, risk) in risks.items())
            found["figures"].append((f"Risk and coverage{mark}", figures.to_svg(figure, "risk", f"Risk: {text}.")))
        numbers = sorted(record.tables)
        predicted = {number: record.tables[number].get("prediction") for number in numbers}
        series: dict[str, list[float | None]] = {}
        if first is not None and numbers:
            base = first.get("prediction")
            series["as the source"] = [100 * float((predicted[number] == base).mean()) for number in numbers]
        if numbers and (first is not None or len(numbers) > 1):
            before = [None if first is None else first.get("prediction"), *(predicted[number] for number in numbers)]
            flips = [
                None if then is None else 100 * float((then != predicted[number]).mean())
                for then, number in zip(before, numbers, strict=False)
            ]
            series["changed"] = flips
        if series:
            curve = Curve(
                "agreement", "Predictions that stay and that change", numbers, series, "% of the images", self.unit
            )
            found["curves"].append(curve)
        return found

    def _changed(self) -> list[tuple[str, str]]:
        """The settings that differ from the default, by dotted key."""
        if self.config is None:
            return [(str(key), str(value)) for key, value in flatten(dict(self.record.settings)).items()]
        settings = flatten(self.config.model_dump(mode="json", exclude_defaults=True))
        defaults = option_defaults(self.config)
        return [
            (key, str(value)) for key, value in settings.items()
            if key != "name" and (key not in defaults or value != defaults[key])
        ]  # fmt: skip


def choose_pictures(record: RunRecord, most: int) -> list[int]:
    """Rows of the target images that the page shows."""
    tables = [record.source_table, *(record.tables[number] for number in sorted(record.tables))]
    return notable_rows([table for table in tables if table is not None], most)


def heat_map(
    measure: str,
    title: str,
    reports: Sequence[Mapping[str, Any]],
    by_class: Sequence[Mapping[str, float | None] | None],
    text: Callable[[float | None], str],
) -> dict[str, Any]:
    """A table of classes by rounds.

    Args:
        measure: short name.
        title: title for readers.
        reports: records of the rounds.
        by_class: the values by class of each round; None if a round has none.
        text: formats a value.
    """
    columns = [values or {} for values in by_class]
    known = [value for column in columns for value in column.values() if value is not None]
    return {
        "measure": measure,
        "title": title,
        "text": text,
        "columns": columns,
        "heads": [str(report["round"]) for report in reports],
        "low": min(known, default=0),
        "high": max(known, default=1),
    }


def _readable(measure: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """A heat map for the template. With many classes only those that vary most; with many rounds some of them."""
    places = page_data.evenly(len(measure["columns"]), 24)
    columns = [measure["columns"][place] for place in places]
    names = list(classes)
    if len(names) > MOST_ROWS:

        def spread(name: str) -> float:
            known = [column[name] for column in columns if column.get(name) is not None]
            return max(known, default=0) - min(known, default=0)

        kept = set(sorted(names, key=spread, reverse=True)[:MOST_ROWS])
        names = [name for name in names if name in kept]
    return {
        "measure": measure["measure"],
        "title": measure["title"],
        "heads": [measure["heads"][place] for place in places],
        "note": f"The {MOST_ROWS} of {len(classes)} classes that vary most." if len(classes) > MOST_ROWS else "",
        "rows": [
            (
                clean_name(name),
                [
                    {
                        "text": measure["text"](column.get(name)),
                        "value": "" if column.get(name) is None else f"{column[name]:.5g}",
                        "share": None if column.get(name) is None
                        else _depth(column[name], measure["low"], measure["high"]),
                    }
                    for column in columns
                ],
            )
            for name in names
        ],
    }  # fmt: skip


def _depth(value: float, low: float, high: float) -> float:
    """Depth of a cell's colour, 0.08 to 1."""
    return round(0.08 + 0.92 * min(1.0, max(0.0, (value - low) / ((high - low) or 1))), 3)


def _drawn_histograms(selection: Mapping[str, Any] | None, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The histograms of the last round, for readers without a script: bars in per cent of the highest."""
    if selection is None:
        return []
    last = selection["rounds"][-1]
    low, high = last["range"]
    order = sorted(range(len(classes)), key=lambda number: last["classes"][number]["selected"])
    shown = []
    for number in sorted(order[:12]):
        one = last["classes"][number]
        stacks = [one[name] or [0] * selection["bins"] for name in ("right", "wrong", "unknown")]
        highest = max(1, max(map(sum, zip(*stacks, strict=True))))
        threshold = one["lambda"]
        shown.append(
            {
                **one,
                "name": clean_name(classes[number]),
                "stacks": [[100 * count / highest for count in bin_] for bin_ in zip(*stacks, strict=True)],
                "place": None if threshold is None else 100 * (threshold - low) / (high - low),
                "round": last["round"],
            }
        )
    return shown


def _reliability(table) -> list[tuple[float, float, int]]:
    truth, probability = table.get("label"), table.get("probability").astype(float)
    known = truth >= 0
    right, confidence = (truth == table.get("prediction"))[known], probability[known]
    place = np.clip(np.ceil(confidence * RELIABILITY_BINS).astype(int) - 1, 0, RELIABILITY_BINS - 1)
    return [
        (float(confidence[place == number].mean()), float(right[place == number].mean()), int((place == number).sum()))
        for number in range(RELIABILITY_BINS)
        if (place == number).any()
    ]


def _reading(points: Sequence[tuple[float, float, int]]) -> str:
    total = sum(count for *_, count in points)
    error = sum(abs(confidence - right) * count for confidence, right, count in points) / total
    return f"expected calibration error {error:.3f}"


def _risk(table, by: str) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk at up to 200 places."""
    truth = table.get("label")
    known = truth >= 0
    order = np.argsort(-table.get(by)[known], kind="stable")
    wrong = (truth != table.get("prediction"))[known][order]
    risk = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    places = np.unique(np.linspace(max(0, len(wrong) // 100 - 1), len(wrong) - 1, 200).astype(int))
    return (places + 1) / len(wrong), risk[places]


def _cell_text(share: float) -> str:
    if share == 0:
        return ""
    return f"{100 * share:.0f}" if share >= 0.095 else f"{100 * share:.1f}" if share >= 0.0005 else "·"


def whole_percent(share: float | None) -> str:
    """A share in whole per cent, for a cell of a heat map."""
    return "" if share is None else f"{100 * share:.0f}"


def short_name(name: str, most: int = NAME_LENGTH) -> str:
    """A name that fits beside a figure."""
    name = clean_name(name)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _unique(names: Sequence[str]) -> list[str]:
    """Short names that stay different from one another."""
    found: list[str] = []
    for number, name in enumerate(names):
        short = short_name(name)
        found.append(f"{short} ({number})" if short in found else short)
    return found


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Names in one line: `a, b, c and 337 more`."""
    shown = ", ".join(short_name(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
