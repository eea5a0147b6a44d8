"""`report.html` of an adaptation: one file that needs no others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.adaptation.terminal import SEPARATION
from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS
from uda.data.images import Images
from uda.evaluation.collapse import CURES
from uda.report import figures, terminal
from uda.report.gallery import thumbnail
from uda.report.html import MOST_BARS, NOTABLE_LOSS, method_settings_text, template


def render_page(
    config: AdaptationConfig,
    classes: Sequence[str],
    images: Images,
    truth: np.ndarray | None,
    source: Mapping[str, Any] | None,
    rounds: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
) -> str:
    """The page of a run.

    Args:
        config: the run's config.
        classes: K class names.
        images: the target images, for the galleries.
        truth: (N,) target labels, -1 if unknown. None: the page says that oracle figures are missing.
        source: record of the source model, or None.
        rounds: records of the rounds, in order.
        results: content of `results.json`.
    """
    if source is not None and not source["validators"]:  # there was no source model
        source = None
    final = rounds[-1] if rounds else source
    labelled = final is not None and final["accuracy"] is not None
    return template("adaptation.html").render(
        config=config,
        pair=_pair(config),
        selector=results["selector"],
        facts=_facts(config, classes, images, truth),
        labelled=labelled,
        headline=_headline(results, rounds, source is not None),
        notices=_notices(rounds, results, labelled),
        source=source,
        rounds=rounds,
        results=results,
        chooses=any("portion" in record for record in rounds),
        curves=_curves(rounds, source, results["selector"], config.validator) if rounds else [],
        bars=_bars(source, final, classes) if labelled else None,
        domain_rows=_domain_rows(source, final),
        separation=SEPARATION,
        class_rows=_class_rows(classes, source, final, rounds),
        confusion=_confusion(final, classes) if labelled else None,
        galleries=_galleries(rounds, classes, images, truth, results["selector"]),
        yaml=config.to_yaml(),
    )


def _facts(
    config: AdaptationConfig, classes: Sequence[str], images: Images, truth: np.ndarray | None
) -> list[tuple[str, str]]:
    """The config in words for a reader."""
    known = 0 if truth is None else int((truth != NO_LABEL).sum())
    labels = "none known" if known == 0 else "all known" if known == len(truth) else f"known for {known}"
    facts = [
        ("Data", f"{config.data.dataset or 'own images'}: {_pair(config)}"),
        ("Target", f"{len(images.ids)} images, {len(classes)} classes, labels {labels}"),
        ("Model", f"{config.model.backbone}, head {config.model.head or 'none'}, input {config.transforms.size} px"),
        ("Method", config.method),
    ]
    if ADAPTATION_METHODS[config.method].rounds:
        training = config.self_training
        batch = training.batch
        length = f"{training.steps} steps" if training.steps else f"{training.epochs} epochs"
        facts += [
            ("Selector", training.selector),
            ("Regulariser", training.regularizer),
            ("Rounds", f"{training.rounds} of {length}"),
            ("Portion", _schedule(training.portion)),
            ("Source share", _schedule(training.source_share)),
            ("Batch", f"{batch.mixed} mixed" if batch.mixed else f"{batch.source} source + {batch.selected} selected"),
            ("Domains", f"{training.forward} forward pass, BatchNorm {training.batch_norm}"),
        ]
    if ADAPTATION_METHODS[config.method].adapts:
        adaptation = config.adaptation
        batch = adaptation.batch
        facts += [
            ("Settings", method_settings_text(config)),
            ("Steps", f"{adaptation.steps}, a report every {adaptation.interval}"),
            ("Batch", f"{batch.source} source + {batch.target} target"),
            ("Domains", f"{adaptation.forward} forward pass, BatchNorm {adaptation.batch_norm}"),
        ]
    return [*((name, value) for name, value in facts if value), ("Seed", str(config.seed))]


def _pair(config: AdaptationConfig) -> str:
    return f"{' + '.join(config.data.sources)} to {' + '.join(config.data.targets)}"


def _domain_rows(source: Mapping[str, Any] | None, final: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Class mean before and after for each target domain; empty if there is only one."""
    before, after = (((record or {}).get("accuracy") or {}).get("domains") or {} for record in (source, final))
    return [
        {"name": name, "source": before.get(name, {}).get("class_mean"), "final": figures["class_mean"]}
        for name, figures in after.items()
    ]


def _schedule(schedule) -> str:
    return f"{schedule.start:g}, + {schedule.step:g} per round, at most {schedule.max:g}"


def _headline(
    results: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], has_source: bool
) -> list[dict[str, Any]]:
    """The figures at the top. All need target labels."""
    before = results["source_only"]["class_mean"]
    choice, best = results["label_free_choice"], results["oracle_best"]
    what = "report" if rounds and "portion" not in rounds[-1] else "round"
    cards = [{"title": "Source only", "value": before, "note": "before adaptation"}] if has_source else []
    cards.append(
        {"title": "Final", "value": results["final"]["class_mean"], "note": f"the last {what}, not chosen by a score"}
    )
    if results["rounds"]:
        cards += [
            {
                "title": "Label-free choice",
                "value": choice["class_mean"],
                "note": f"{what} {choice['round']}, chosen by the validator '{choice['validator']}'",
            },
            {
                "title": "Oracle best",
                "value": best["class_mean"],
                "note": f"{what} {best['round']}, best by target labels: a bound, not a result",
            },
        ]
    for card in cards:
        told = has_source and card["title"] != "Source only"
        card["change"] = terminal.difference(card["value"], before) if told else ""
    return cards


def _notices(rounds: Sequence[Mapping[str, Any]], results: Mapping[str, Any], labelled: bool) -> list[str]:
    """Notices that a reader should not overlook."""
    notices = []
    if not labelled:
        notices.append("The target has no labels: accuracy and the other oracle figures are missing.")
    empty = [str(record["round"]) for record in rounds if record.get("selected") == 0]
    if empty:
        notices.append(f"No image was selected in round {', '.join(empty)}.")
    notices += _collapse(rounds, results)
    if labelled and rounds:
        final, best = results["final"]["class_mean"], results["oracle_best"]
        before = results["source_only"]["class_mean"]
        if before is not None and final < before:
            notices.append("Adaptation made the class mean lower than the source model's (oracle).")
        if best["class_mean"] - final >= NOTABLE_LOSS:
            lost = 100 * (best["class_mean"] - final)
            what = "round" if "portion" in rounds[-1] else "report"
            notices.append(f"The class mean fell by {lost:.1f} points after {what} {best['round']} (oracle).")
    return notices


def _collapse(rounds: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> list[str]:
    """Warnings of the final model, the earlier reports with warnings, and what may help."""
    if rounds:
        stage, what = ("self_training", "round") if "portion" in rounds[-1] else ("adaptation", "report")
        notices = [f"After the last {what}: {warning}." for warning in rounds[-1]["warnings"]]
        earlier = [str(record["round"]) for record in rounds[:-1] if record["warnings"]]
        if earlier:
            names = f"{what} {earlier[0]}" if len(earlier) == 1 else f"{len(earlier)} earlier {what}s"
            notices.append(f"Warnings of lost classes in {names}: see `warnings` in results.json.")
    else:
        stage, notices = "source", [f"The {warning}." for warning in results["warnings"]]
    if notices:
        notices.append(f"{CURES[stage][0].upper()}{CURES[stage][1:]}.")
    return notices


def _curves(
    rounds: Sequence[Mapping[str, Any]], source: Mapping[str, Any] | None, selector: str, validator: str
) -> list[dict[str, Any]]:
    """The figures over the rounds, each with a title and a description for screen readers."""
    numbers = [record["round"] for record in rounds]
    chooses = "portion" in rounds[0]
    what = "round" if chooses else "report"

    def values(name: str, scale: float = 1) -> list[float | None]:
        return [None if record[name] is None else scale * record[name] for record in rounds]

    panels = []

    def add(name: str, title: str, figure, description: str) -> None:
        svg = figures.to_svg(figure, name, description)
        panels.append({"title": title, "svg": svg, "description": description})

    def range_of(name: str, scale: float = 1, digits: int = 3) -> str:
        known = [value for value in values(name, scale) if value is not None]
        return f"from {known[0]:.{digits}f} to {known[-1]:.{digits}f}" if known else "unknown"

    if any(value is not None for value in values("class_mean")):
        before = None if source is None or source["class_mean"] is None else 100 * source["class_mean"]
        series = {"class mean": values("class_mean", 100), "overall": values("overall", 100)}
        figure = figures.curves_figure(numbers, series, "% right (oracle)", before, xlabel=what)
        add("accuracy", f"Accuracy after each {what} (oracle)", figure,
            f"Class mean by {what}, {range_of('class_mean', 100, 1)} per cent.")  # fmt: skip
    if chooses:
        overlap = {name: [record["overlap"][name] for record in rounds] for name in rounds[0]["overlap"]}
        own = selector != "softmax"
    if chooses and any(value is not None for value in values("tp_rate")):
        series = {"all selected": values("tp_rate", 100)}
        if own:
            for name, key in ((f"{selector} only", "only_selector"), ("softmax only", "only_softmax")):
                rates = overlap[f"tp_rate_{key}"]
                series[name] = [None if rate is None else 100 * rate for rate in rates]
        figure = figures.curves_figure(numbers, series, "% right (oracle)")
        add("tp-rate", "Right pseudo-labels, TP rate (oracle)", figure,
            f"Share of right pseudo-labels by round, {range_of('tp_rate', 100, 1)} per cent.")  # fmt: skip
    if chooses:
        only = overlap["only_selector"]
        figure = figures.counts_figure(numbers, overlap["both"], only, selector)
        add("counts", "Selected images", figure, f"Number of selected images by round, {range_of('selected', 1, 0)}.")
        series = {"AVC": values("avc"), "AVH": values("avh")}
        figure = figures.curves_figure(numbers, series, "mean over selected images")
        add("angles", "AVC and AVH of the selected images", figure, f"Mean AVC by round, {range_of('avc')}.")
        figure = figures.curves_figure(numbers, {"confidence": values("confidence")}, "mean largest softmax")
        add("confidence", "Confidence of the selected images", figure, f"Mean confidence, {range_of('confidence')}.")
        figure = figures.curves_figure(numbers, {"norm": values("feature_norm")}, "mean |x|")
        description = f"Mean feature norm, {range_of('feature_norm', 1, 2)}."
        add("norm", "Feature norm of the selected images", figure, description)
    scores = [record["validators"].get(validator) for record in rounds]
    if any(score is not None for score in scores):
        figure = figures.curves_figure(numbers, {validator: scores}, f"{validator}, higher = better", xlabel=what)
        add("validator", f"Label-free score after the {what}", figure,
            f"Score of the validator {validator} by {what}. It picks the label-free choice.")  # fmt: skip
    figure = figures.curves_figure(numbers, {"loss": values("loss")}, "mean training loss", xlabel=what)
    add("loss", "Training loss", figure, f"Mean training loss by {what}, {range_of('loss')}.")
    return panels


def _bars(source: Mapping[str, Any] | None, final: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy by class before and after. With many classes only those that changed most are shown."""
    before = source["accuracy"]["per_class"] if source and source["accuracy"] else {}
    after = final["accuracy"]["per_class"]
    names = list(classes)
    note = ""
    if len(names) > MOST_BARS:
        change = {name: abs((after[name] or 0) - (before.get(name) or 0)) for name in names}
        kept = set(sorted(names, key=change.get, reverse=True)[:MOST_BARS])
        names = [name for name in names if name in kept]
        note = f"The {MOST_BARS} of {len(classes)} classes that changed most. The table has all classes."
    description = "Accuracy by class of the source model and of the final model. The table below has the numbers."
    shown = {"source only": before, "final": after} if source else {"final": after}
    svg = figures.to_svg(figures.classes_figure(shown, names), "classes", description)
    return {"svg": svg, "note": note}


def _confusion(final: Mapping[str, Any], classes: Sequence[str]) -> str:
    description = "Confusion matrix of the final model in per cent of each true class."
    figure = figures.confusion_figure(final["accuracy"]["confusion"], classes)
    return figures.to_svg(figure, "confusion", description)


def _class_rows(
    classes: Sequence[str],
    source: Mapping[str, Any] | None,
    final: Mapping[str, Any] | None,
    rounds: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """For each class: accuracy before and after, and figures of the last round's selected images."""

    def accuracy_of(record: Mapping[str, Any] | None, name: str) -> float | None:
        return record["accuracy"]["per_class"][name] if record and record["accuracy"] else None

    last = rounds[-1] if rounds else {}
    return [
        {
            "name": name,
            "source": accuracy_of(source, name),
            "final": accuracy_of(final, name),
            "selected": last["selected_per_class"][name] if "lambda" in last else None,
            "threshold": last["lambda"][name] if "lambda" in last else None,
            "tp_rate": last["tp_rate_per_class"][name] if "lambda" in last else None,
        }
        for name in classes
    ]


def _galleries(
    rounds: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    images: Images,
    truth: np.ndarray | None,
    selector: str | None,
) -> list[dict[str, Any]]:
    """The galleries of the last round and of the first, which selects by the source model."""
    if selector is None or selector == "softmax":
        return []
    shown = {record["round"]: record for record in (*rounds[-1:], *rounds[:1])}
    return [
        {
            "round": record["round"],
            "overlap": record["overlap"],
            "sides": [
                {
                    "chooser": chooser,
                    "other": other,
                    "count": record["overlap"][name],
                    "tp_rate": record["overlap"][f"tp_rate_{name}"],
                    "pictures": [_picture(entry, classes, images, truth) for entry in record["gallery"][name]],
                }
                for name, chooser, other in (
                    ("only_selector", selector, "softmax"),
                    ("only_softmax", "softmax", selector),
                )
            ],
        }
        for record in shown.values()
    ]


def _picture(
    entry: Mapping[str, Any], classes: Sequence[str], images: Images, truth: np.ndarray | None
) -> dict[str, Any]:
    true_label = NO_LABEL if truth is None else int(truth[entry["index"]])
    verdict = "unknown" if true_label == NO_LABEL else "right" if true_label == entry["label"] else "wrong"
    names = {NO_LABEL: None, UNKNOWN_CLASS: "not a class of the source"}
    return {
        **entry,
        "label": classes[entry["label"]],
        "other_label": classes[entry["other_label"]],
        "truth": names[true_label] if true_label < 0 else classes[true_label],
        "verdict": verdict,
        "data": thumbnail(images, entry["index"]),
    }
