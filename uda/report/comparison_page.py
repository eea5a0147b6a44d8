"""The page of several runs: `comparison.html`."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uda.core.statistics import LEAST_SEEDS
from uda.report import figures, page_data
from uda.report.comparison import (
    ComparedRun,
    Disagreement,
    Estimate,
    Group,
    difference,
    disagreement,
    grouped,
    obstacle,
    paired,
    setting_rows,
    singly,
)
from uda.report.html import clean_name, template
from uda.report.page import listed, short_name
from uda.report.pictures import data_uri

Report = Mapping[str, Any]

#: Groups, or runs of a single group, that the figures, the table of classes and the images show.
MOST_DRAWN = 8
#: Rows of the figure of means.
MOST_MEANS = 20
#: Single runs that are drawn behind a mean.
MOST_PALE = 10
#: Letters of all names in the legend of a figure.
MOST_LETTERS = 40
#: Above this number of classes their table scrolls, and paper has only so many of its rows.
MOST_CLASS_ROWS = 40
MOST_PICTURES, MOST_PAIRS = 48, 20
#: Above this number of rows the table of settings is folded.
MOST_SETTINGS = 24
MEASURES = {"class_mean": "class mean", "overall": "accuracy"}


@dataclass(frozen=True)
class Line:
    """A group's line: its mean over the runs, and the single runs if there are several."""

    title: str
    mean: Sequence[float | None]
    runs: Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class GroupCurve:
    """Curves of several groups over one another: drawn for readers without a script, and their data for the script."""

    id: str
    title: str
    x: Sequence[float]
    lines: Sequence[Line]
    ylabel: str
    xlabel: str
    joined: bool
    """Whether lines go on over places without a value, because the runs report at different places."""

    @property
    def known(self) -> bool:
        """Whether there is a value to draw."""
        return any(value is not None for line in self.lines for value in line.mean)

    def svg(self) -> str:
        """The figure for readers without a script."""
        names = [short_name(line.title) for line in self.lines]
        if sum(map(len, names)) > MOST_LETTERS:
            names = [name.split()[0] for name in names]  # the letters; the page has a key above
        lines = {name: (line.mean, line.runs) for name, line in zip(names, self.lines, strict=True)}
        figure = figures.compared_figure(self.x, lines, self.ylabel, self.xlabel, self.joined)
        ends = []
        for line in self.lines:
            known = [value for value in line.mean if value is not None]
            ends += [f"{line.title} from {known[0]:.4g} to {known[-1]:.4g}"] if known else []
        return figures.to_svg(figure, self.id, clean_name(f"{self.title} by {self.xlabel}: {'; '.join(ends)}."))

    def data(self) -> dict[str, Any]:
        """The figure for the script."""
        return {
            "id": self.id, "title": self.title, "ylabel": self.ylabel, "xlabel": self.xlabel, "x": list(self.x),
            "baselines": [], "joined": self.joined,
            "series": [
                {
                    "name": clean_name(line.title),
                    "values": [page_data.rounded(value) for value in line.mean],
                    "runs": [[page_data.rounded(value) for value in values] for values in line.runs],
                }
                for line in self.lines
            ],
        }  # fmt: skip


def comparison_page(runs: Sequence[ComparedRun], links: Mapping[str, str]) -> str:
    """The page: one HTML file that needs no others.

    Args:
        runs: the runs; two or more. Differences are to the group of the first one.
        links: addresses of the runs' own pages, relative to this page, by folder.
    """
    groups = grouped(runs)
    measure = "overall" if all(run.measure == "overall" for run in runs) else "class_mean"
    # Without another group the runs of the only one are compared with each other.
    sides = groups if len(groups) > 1 else singly(groups[0])
    drawn = sides[:MOST_DRAWN]
    curves = _curves(drawn)
    images = disagreement(drawn)
    labelled = any(_final(measure)(run) is not None for run in runs)
    pictures = images.pictures() if images else {}
    return template("comparison.html").render(
        runs=runs,
        groups=groups,
        sides=sides,
        drawn=drawn,
        measure=MEASURES[measure],
        labelled=labelled,
        zero_shots=any(run.zero_shot for run in runs),
        sources=any(run.source for run in runs),
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        subtitle=_subtitle(runs, groups),
        lead=_lead(groups, measure, labelled),
        notices=_notices(groups, measure, labelled),
        rows=[_row(group, groups[0], measure) for group in groups],
        score=_common_score(runs),
        choice=" or ".join(dict.fromkeys(_choice_title(run) for run in runs)),
        least_seeds=LEAST_SEEDS,
        means=_means_figure(sides, measure),
        single=[_single(run, group, measure, links) for group in sides for run in group.runs],
        curves=curves,
        classes=_class_rows(drawn),
        most_class_rows=MOST_CLASS_ROWS,
        settings=setting_rows(groups),
        most_settings=MOST_SETTINGS,
        images=_images(images) if images else None,
        pairs=_pairs(images) if images else [],
        gallery=_gallery(images, pictures) if images else [],
        has_pictures=bool(pictures),
        data=page_data.as_script(
            {"version": page_data.VERSION, "classes": [], "curves": [curve.data() for curve in curves]}
        ),
    )


def _final(measure: str) -> Callable[[ComparedRun], float | None]:
    return lambda run: (run.final or {}).get(measure)


def _zero_shot(measure: str) -> Callable[[ComparedRun], float | None]:
    return lambda run: (run.zero_shot or {}).get(measure)


def _source(measure: str) -> Callable[[ComparedRun], float | None]:
    return lambda run: (run.source or {}).get(measure)


def _gain(measure: str) -> Callable[[ComparedRun], float | None]:
    def gain(run: ComparedRun) -> float | None:
        before, after = _source(measure)(run), _final(measure)(run)
        return None if before is None or after is None or not run.reports else after - before

    return gain


def _chosen(measure: str) -> Callable[[ComparedRun], float | None]:
    return lambda run: (run.choice or {}).get(measure) if run.reports else None


def _last_score(run: ComparedRun) -> float | None:
    return run.scores[-1] if run.reports and run.scores else None


def _choice_title(run: ComparedRun) -> str:
    return f"by {run.score}"


def _common_score(runs: Sequence[ComparedRun]) -> str | None:
    names = {run.score for run in runs}
    return names.pop() if len(names) == 1 else None


def _subtitle(runs: Sequence[ComparedRun], groups: Sequence[Group]) -> str:
    targets = list(dict.fromkeys(run.target for run in runs if run.target))
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    told = [
        f"{len(groups)} groups" if len(groups) > 1 else groups[0].name,
        f"target {listed(targets)}" if targets else "",
    ]
    if seeds:
        told.append(f"seed{'' if len(seeds) == 1 else 's'} {listed(list(map(str, seeds)), 12)}")
    return " · ".join(told)


# At the top


def _lead(groups: Sequence[Group], measure: str, labelled: bool) -> tuple[str, str, str]:
    """A sentence, the figure in it that stands out, and what may be concluded."""
    title = MEASURES[measure]
    if not any(run.final for group in groups for run in group.runs):
        return "There are no figures yet.", "", ""
    if not labelled:
        return (
            "No run has target labels, so accuracy is unknown. The page shows label-free scores, what each run chose, "
            "and where the predictions differ.", "", "",
        )  # fmt: skip
    estimates = [(group, group.estimate(_final(measure))) for group in groups]
    known = [(group, found) for group, found in estimates if found is not None]
    if len(known) == 1:
        group, found = known[0]
        values = list(group.by_seed(_final(measure)).values())
        spread = f"over {found.count} seeds, from {100 * min(values):.2f} to {100 * max(values):.2f} %"
        return (
            f"The {title} after the last report of {group.title} is", f"{100 * found.mean:.2f}\u00a0%",
            f"{spread}{_interval_words(found)}." if found.count > 1 else ".",
        )  # fmt: skip
    if len(groups) == 2:
        return _lead_of_two(groups, measure)
    best = max(known, key=lambda entry: entry[1].mean)
    worst = min(known, key=lambda entry: entry[1].mean)
    return (
        f"Of {len(known)} groups, {best[0].title} has the highest {title} after its last report:",
        f"{100 * best[1].mean:.2f}\u00a0%{_interval_words(best[1])}.",
        f"The lowest is {100 * worst[1].mean:.2f} % ({worst[0].title}). "
        "The table has the differences and how sure they are.",
    )


def _interval_words(found: Estimate) -> str:
    if found.interval is None:
        return ""
    return " (95 % interval {:.2f} to {:.2f})".format(*(100 * end for end in found.interval))


def _lead_of_two(groups: Sequence[Group], measure: str) -> tuple[str, str, str]:
    first, other = groups
    title, found = MEASURES[measure], difference(other, first, _final(measure))
    if found is None:
        why = obstacle(other, first)
        told = f"{why[0].upper()}{why[1:]}" if why else "No seed of both has a figure"
        return f"{other.title} cannot be compared with {first.letter}. {told}.", "", ""
    points = 100 * found.mean
    much = f"{abs(points):.2f} points {'higher' if points > 0 else 'lower'}" if round(points, 2) else "the same"
    seeds = "one shared seed" if found.count == 1 else f"{found.count} shared seeds"
    if found.interval is None:
        sure = f"With {seeds} the page cannot say how sure this is: an interval needs {LEAST_SEEDS}."
    else:
        low, high = (100 * end for end in found.interval)
        sure = f"The 95 % interval over {seeds} is {low:+.2f} to {high:+.2f}"
        sure += ". It contains 0, so these seeds do not tell the two apart." if low <= 0 <= high else "."
    return f"{other.title} against {first.title}: after the last report the {title} is", f"{much}.", sure


def _notices(groups: Sequence[Group], measure: str, labelled: bool) -> list[str]:
    """What a reader must know before comparing."""
    runs, found = [run for group in groups for run in group.runs], []
    kinds = list(dict.fromkeys(run.kind for run in runs if run.kind))
    if len(kinds) > 1:
        told = "; ".join(
            f"{', '.join(group.letter for group in groups if group.first.kind == kind)}: {kind}" for kind in kinds
        )
        found.append(f"The runs are of different kinds ({told}). What only one kind has is shown for this kind alone.")
    found += [
        f"{group.title} has no target, so it has no figures here." for group in groups if not group.first.has_target
    ]
    for group in groups[1:]:
        if group.first.has_target and (why := obstacle(group, groups[0])):
            found.append(f"{group.title} is not compared with {groups[0].letter}: {why}.")
    for group in groups:
        if group.unfinished:
            found.append(
                f"{group.title}: {group.unfinished} of {_count(group.runs, 'run')} "
                f"{'is' if group.unfinished == 1 else 'are'} not finished, and "
                f"{'takes' if group.unfinished == 1 else 'take'} part with the newest report."
            )
        for seed in group.seeds:
            same = sum(run.seed == seed for run in group.runs)
            if same > 1:
                which = "an unknown seed" if seed is None else f"seed {seed}"
                found.append(f"{group.title} has {same} runs of {which}. Their mean counts as one.")
        without = [run for run in group.runs if labelled and run.final and _final(measure)(run) is None]
        if without:
            found.append(f"{group.title}: {_count(without, 'run')} without target labels, so without accuracy.")
    found += [
        f"{run.folder} has no figures here, because its records contradict one another."
        for run in runs if not run.record.trusted
    ]  # fmt: skip
    single = [group for group in groups if len(group.seeds) == 1]
    if single:
        whose = "No group has" if len(single) == len(groups) else f"{listed([group.title for group in single])}: no"
        tail = "more than one seed, so there are no intervals." if len(single) == len(groups) else (
            "interval, because there is only one seed."
        )  # fmt: skip
        found.append(f"{whose} {tail} Another seed alone may move such figures by points.")
    return found


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


# Tables


def _row(group: Group, reference: Group, measure: str) -> dict[str, Any]:
    """A row of the table of groups."""
    return {
        "group": group,
        "zero_shot": group.estimate(_zero_shot(measure)),
        "source": group.estimate(_source(measure)),
        "final": group.estimate(_final(measure)),
        "gain": group.estimate(_gain(measure)),
        "choice": group.estimate(_chosen(measure)),
        "difference": None if group is reference else difference(group, reference, _final(measure)),
        "zero_shot_score": group.estimate(lambda run: run.zero_shot_score),
        "score": group.estimate(_last_score),
        "in_use": group.estimate(lambda run: (run.final or {}).get("effective_classes")),
    }


def _single(run: ComparedRun, side: Group, measure: str, links: Mapping[str, str]) -> dict[str, Any]:
    """A row of the table of single runs."""
    return {
        "run": run,
        "side": side,
        "link": links.get(str(run.folder)),
        "status": _status(run),
        "zero_shot": _zero_shot(measure)(run),
        "source": _source(measure)(run),
        "final": _final(measure)(run),
        "choice": _chosen(measure)(run),
        "chosen": run.choice["round"] if run.choice and run.reports else None,
        "zero_shot_score": run.zero_shot_score,
        "score": _last_score(run),
    }


def _status(run: ComparedRun) -> str:
    done = _count(run.record.reports, run.unit)
    if not run.record.trusted:
        return "contradictory"
    if run.record.finished:
        return "finished"
    return f"running, {done} so far" if run.record.running else f"not finished, {done} so far"


def _class_rows(drawn: Sequence[Group]) -> dict[str, Any] | None:
    """Accuracy by class of every group, and the difference to the first one. The largest differences come first."""
    first = drawn[0]
    shown = [group for group in drawn if not obstacle(group, first) and group.estimate(_mean_of_classes)]
    if not shown or shown[0] is not first:
        return None
    rows = []
    for name in first.classes:
        of_class = _of_class(name)
        values = [group.by_seed(of_class) for group in shown]
        means = [float(np.mean(list(found.values()))) if found else None for found in values]
        pairs = [paired(group, first, of_class) for group in shown[1:]]
        changes = [float(np.mean(found)) if found else None for found in pairs]
        rows.append({"name": name, "means": means, "changes": changes})
    rows.sort(key=lambda row: -max((abs(change) for change in row["changes"] if change is not None), default=0))
    return {"groups": shown, "rows": rows, "left_out": [group for group in drawn if group not in shown]}


def _of_class(name: str) -> Callable[[ComparedRun], float | None]:
    return lambda run: (((run.final or {}).get("accuracy") or {}).get("per_class") or {}).get(name)


def _mean_of_classes(run: ComparedRun) -> float | None:
    return 0.0 if ((run.final or {}).get("accuracy") or {}).get("per_class") else None


# Figures


def _means_figure(sides: Sequence[Group], measure: str) -> dict[str, str] | None:
    """Means with their intervals and the single runs."""
    rows = {}
    for group in sides[:MOST_MEANS]:
        if (found := group.estimate(_final(measure))) is not None:
            ends = None if found.interval is None else tuple(100 * end for end in found.interval)
            values = [100 * value for value in group.by_seed(_final(measure)).values()]
            rows[short_name(group.label, 32)] = (100 * found.mean, ends, values)
    if len(rows) < 2:
        return None
    figure = figures.estimates_figure(rows, f"{MEASURES[measure]} after the last report, % (oracle)")
    told = "; ".join(f"{name} {mean:.2f}" for name, (mean, _, _) in rows.items())
    seeds = any(len(values) > 1 for *_, values in rows.values())
    note = "A bar is the 95 % interval of the mean, a ring a seed." if seeds else ""
    if len(sides) > MOST_MEANS:
        note += f" The first {MOST_MEANS} of {len(sides)} are drawn. The table has all."
    title = "Means" if seeds else "Last reports"
    return {"title": title, "svg": figures.to_svg(figure, "means", f"{title}: {told}."), "note": note.strip()}


def _curves(drawn: Sequence[Group]) -> list[GroupCurve]:
    """The figures over the rounds, or over the steps if not all runs have rounds."""
    runs = [run for group in drawn for run in group.runs]
    if all(run.unit == "round" for run in runs if run.reports):
        xlabel, places = "round", {id(run): [report.get("round") for report in run.reports] for run in runs}
    else:
        xlabel, places = "step", {id(run): _steps(run) for run in runs}
        if any(None in found for found in places.values()):
            xlabel, places = "report", {id(run): list(range(len(run.reports))) for run in runs}
    x = sorted({place for found in places.values() for place in found})

    def curve(name: str, title: str, ylabel: str, value: Callable[[ComparedRun, int], float | None]) -> GroupCurve:
        lines = []
        for group in drawn:
            with_reports = [run for run in group.runs if run.reports]
            values = []
            for run in with_reports:
                at = {place: value(run, number) for number, place in enumerate(places[id(run)])}
                values.append([at.get(place) for place in x])
            lines.append(Line(group.label, _means(values, len(x)), values[:MOST_PALE] if len(values) > 1 else []))
        return GroupCurve(name, title, x, lines, ylabel, xlabel, xlabel == "step")

    def of(key: str, scale: float = 1) -> Callable[[ComparedRun, int], float | None]:
        def value(run: ComparedRun, number: int) -> float | None:
            known = run.reports[number].get(key)
            return None if known is None else scale * known

        return value

    found = [
        curve("class-mean", "Class mean (oracle)", "% (oracle)", of("class_mean", 100)),
        curve("overall", "Right predictions (oracle)", "% of the images (oracle)", of("overall", 100)),
        curve("tp-rate", "Right pseudo-labels, TP rate (oracle)", "% right (oracle)", of("tp_rate", 100)),
        curve("selected", "Selected images", "images", of("selected")),
    ]
    for number, name in enumerate(dict.fromkeys(run.score for run in runs if run.reports)):
        found.append(
            curve(f"score-{number}", f"Choice without target labels: {name}", "higher is better", _score(name))
        )
    found += [
        curve("avc", "AVC of the selected images", "mean of the selected", of("avc")),
        curve("avh", "AVH of the selected images", "mean of the selected", of("avh")),
        curve("confidence", "Confidence of the selected images", "mean largest softmax", of("confidence")),
        curve("norm", "Feature norm of the selected images", "mean |x|", of("feature_norm")),
        curve("loss", "Training loss", "mean training loss", of("loss")),
    ]
    return [each for each in found if each.known]


def _steps(run: ComparedRun) -> list[int | None]:
    """Training steps up to each report. A round tells its own steps, a report all so far."""
    steps = [report.get("steps") for report in run.reports]
    if run.unit != "round" or None in steps:
        return steps
    return np.cumsum(steps).tolist()


def _score(name: str) -> Callable[[ComparedRun, int], float | None]:
    def value(run: ComparedRun, number: int) -> float | None:
        if run.score == name:
            return run.scores[number]
        return (run.reports[number].get("validators") or {}).get(name.removeprefix("validator ").strip("'"))

    return value


def _means(values: Sequence[Sequence[float | None]], length: int) -> list[float | None]:
    """The mean at each place that all runs have reached."""
    columns = zip(*values, strict=True) if values else [()] * length
    return [None if not column or None in column else float(np.mean(column)) for column in columns]


# Images


def _images(found: Disagreement) -> dict[str, Any]:
    """How many images the last models predict differently."""
    labelled = found.truth is not None
    rows = []
    for place, (group, run) in enumerate(zip(found.groups, found.runs, strict=True)):
        right = int(found.right[place].sum())
        rows.append({"group": group, "run": run, "right": right, **(found.against_first(place) if place else {})})
    return {
        "rows": rows,
        "count": len(found.differ),
        "differ": int(found.differ.sum()),
        "decided": int(found.decided.sum()),
        "labelled": labelled,
        "known": int(found.known.sum()),
        "first": found.groups[0],
        "left_out": [f"{group.title}: {why}." for group, why in found.left_out],
        "seeds": len({run.seed for run in found.runs}) == 1,
        "several": any(len(group.runs) > 1 for group in found.groups),
    }


def _pairs(found: Disagreement) -> list[dict[str, Any]]:
    names = [clean_name(name) for name in found.classes]
    return [
        {**pair, "group": found.groups[pair["group"]], "first": names[pair["first"]], "other": names[pair["other"]]}
        for pair in found.pairs(MOST_PAIRS)
    ]


def _gallery(found: Disagreement, pictures: Mapping[int, bytes]) -> list[dict[str, Any]]:
    """Pictures of images on which the models disagree. Each class that is predicted is told once, with its groups."""
    names, shown = [clean_name(name) for name in found.classes], []
    for row in found.notable(list(pictures), MOST_PICTURES):
        labels = found.predictions[:, row]
        known = bool(found.known[row])
        shown.append(
            {
                "src": data_uri(pictures[row]),
                "path": clean_name(found.paths[row]),
                "truth": names[found.truth[row]] if known else None,
                "answers": [
                    {
                        "name": names[label],
                        "groups": [group for group, own in zip(found.groups, labels, strict=True) if own == label],
                        "verdict": "" if not known else "right" if label == found.truth[row] else "wrong",
                    }
                    for label in dict.fromkeys(labels.tolist())
                ],
            }
        )
    return shown
