"""The page of an adaptation: what it says beyond what all pages of runs show."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uda.adaptation.config import AdaptationConfig, branch_folder
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.adaptation.results import best_round
from uda.adaptation.terminal import SEPARATION, selector_lines
from uda.data.class_names import NO_LABEL
from uda.evaluation.collapse import CURES
from uda.report.html import duration, method_settings_text
from uda.report.page import NO_HEADLINE, NOTABLE_LOSS, Card, Column, Curve, RunPage, heat_map, whole_percent
from uda.report.run_record import RunRecord
from uda.report.terminal import ZERO_SHOT_NAME, difference, fraction, percent

Report = Mapping[str, Any]

LEGEND = (
    (ZERO_SHOT_NAME, "the network before any training, with the class vectors of model.classifier."),
    ("oracle", "needs target labels. Training, selection and the label-free choice never see them."),
    ("class mean", "mean of the accuracies of the classes; the main figure."),
    ("overall", "share of right predictions."),
    ("ECE", "expected calibration error: how far confidence is from accuracy, 0 is best."),
    ("portion", "share of each class that a round was to select."),
    ("selected", "number of target images that the round trained on."),
    ("softmax too", "how many of these softmax would have selected at the same portion."),
    ("TP rate", "share of the selected pseudo-labels that are right."),
    ("AVC", "angular visual confidence (Chen et al., ICML 2020) of the pseudo-label, mean of the selected images."),
    ("AVH", "angular visual hardness of the pseudo-label, mean of the selected images; high is hard."),
    ("confidence", "largest softmax probability, mean of the selected images."),
    ("norm", "length of the feature, mean of the selected images."),
    ("lambda", "threshold of a class. Images whose score reaches it are selected."),
)
#: What the curves show of how a round's choice overlaps with that of softmax.
OVERLAP = ("both", "only_selector", "only_softmax", "tp_rate_only_selector", "tp_rate_only_softmax")
#: Terms of the legend that need target labels, but no choice of pseudo-labels.
OF_ACCURACY = ("oracle", "class mean", "overall", "ECE")


def adaptation_page(record: RunRecord, config: AdaptationConfig | None) -> RunPage:
    """The page of a run, finished or not. `config` is None if this version of uda cannot read it."""
    source = record.source
    if source and not source.get("validators") and source["class_mean"] is None:
        source = None  # there was no source model
    chooses = any("portion" in report for report in record.reports) or bool(
        config and ADAPTATION_METHODS[config.method].rounds
    )
    classes = _classes(record)
    selectors = _selectors(record) if chooses else []
    selector = record.choice["kept"] if record.choice else " or ".join(selectors) or None
    among = f" (chosen from {', '.join(selectors)})" if record.choice else ""
    page = RunPage(
        record=record,
        config=config,
        classes=classes,
        unit="round" if chooses or not record.reports else "report",
        heading=f"{record.settings.get('name', record.folder.name)}",
        subtitle=_subtitle(record, config, selector and selector + among),
        selector=selector,
        main_curve="accuracy",
        facts=_facts(record, config, classes),
    )
    page.legend = _legend(page)
    if not page.labelled:
        page.main_curve = "validator"
    _headline(page, source)
    page.notices = _notices(page, source)
    page.columns, page.rows = _rounds_table(page, source)
    page.curves = _curves(page, source)
    page.class_columns, page.class_rows = _class_table(page, source)
    page.heat = _heat(page)
    page.shares, page.shares_text = _shares(page, source)
    last = record.reports[-1] if record.reports else source or record.zero_shot
    page.confusion = ((last or {}).get("accuracy") or {}).get("confusion")
    page.extra = _branches(page, source, selectors) + _domains(page, source, last) + _unknown(last)
    return page


def _selectors(record: RunRecord) -> list[str]:
    """The names of the selectors that the run was given."""
    training = record.settings.get("self_training")
    names = training.get("selector") if isinstance(training, Mapping) else None
    return [str(name) for name in (names if isinstance(names, list) else [names]) if name is not None]


def _legend(page: RunPage) -> list[tuple[str, str]]:
    """The terms that the page uses."""
    left_out: set[str] = set()
    if not page.labelled:
        left_out |= {*OF_ACCURACY, "TP rate"}
    if page.selector == "softmax":
        left_out.add("softmax too")
    if not page.record.zero_shot:
        left_out.add(ZERO_SHOT_NAME)
    without_choice = (ZERO_SHOT_NAME, *OF_ACCURACY)
    return [entry for entry in LEGEND if entry[0] not in left_out and (page.selector or entry[0] in without_choice)]


def _before(page: RunPage, source: Report | None) -> list[tuple[str, Report]]:
    """The models before the first report, each with its name: the untouched network and the source model."""
    named = [(ZERO_SHOT_NAME, page.record.zero_shot), ("source", source)]
    return [(name, record) for name, record in named if record]


def _baselines(page: RunPage, source: Report | None) -> list[tuple[str, float]]:
    """The class means in per cent that curves of accuracy are compared with."""
    known = [(name, record["class_mean"]) for name, record in _before(page, source)]
    return [(name, 100 * share) for name, share in known if share is not None]


def _begun_with(page: RunPage, source: Report | None) -> Report | None:
    """Record of the model that gains are measured from: the source model, or the untouched one without it."""
    return source or page.record.zero_shot


def _classes(record: RunRecord) -> tuple[str, ...]:
    if record.last_table is not None:
        return record.last_table.classes
    for report in reversed(record.models):
        if report.get("predicted_per_class"):
            return tuple(report["predicted_per_class"])
        if report.get("accuracy"):
            return tuple(report["accuracy"]["per_class"])
    return ()


def _subtitle(record: RunRecord, config: AdaptationConfig | None, selector: str | None) -> str:
    settings = record.settings
    seed = f"seed {settings['seed']}" if "seed" in settings else ""
    if config is None:
        return " · ".join(filter(None, [seed, str(settings.get("method", ""))]))
    pair = f"{' + '.join(config.data.sources)} to {' + '.join(config.data.targets)}"
    chosen = f"selector {selector}, regulariser {config.self_training.regularizer}" if selector else ""
    options = [f"{name.replace('_', ' ')} {value}" for name, value in config.method_options.items()]
    return " · ".join(filter(None, [seed, pair, config.method, *options, chosen, config.model.backbone]))


# At the top


def _headline(page: RunPage, source: Report | None) -> None:
    """The sentence and the cards at the top."""
    record = page.record
    if not record.trusted:
        page.lead = (NO_HEADLINE, "", "")
        return
    if not record.reports and source is None:
        page.lead = ("There are no figures yet.", "", "")
        if record.zero_shot:
            page.lead = ("So far only the untouched network has predicted the target.", "", "")
        if record.zero_shot and page.labelled:
            reached = f"{percent(record.zero_shot['class_mean'])}\u00a0%"
            page.lead = ("Before any training (zero-shot), the class mean on the target is", reached, "")
        return
    last = record.reports[-1] if record.reports else source
    validator = str(record.settings.get("validator", "im"))
    choice = best_round(record.reports, [report["validators"].get(validator) for report in record.reports])
    if page.labelled:
        best = best_round(record.reports, [report["class_mean"] for report in record.reports])
        _labelled_headline(page, source, last, choice, best, validator)
    else:
        _label_free_headline(page, source, last, choice, validator)


def _labelled_headline(
    page: RunPage, source: Report | None, last: Report, choice: Report, best: Report, validator: str
) -> None:
    reports, unit, final = page.record.reports, page.unit, last["class_mean"]
    begun_with, zero_shot = _begun_with(page, source), page.record.zero_shot
    before = begun_with["class_mean"] if begun_with else None
    if reports and before is not None:
        done = f"{len(reports)} {unit}{'' if len(reports) == 1 else 's'}"
        done = done if unit == "round" else f"{last['steps']:,} steps"
        began = "with the source model" if source else "zero-shot"
        page.lead = (
            f"The class mean on the target went from {percent(before)} % {began} to",
            f"{percent(final)}\u00a0%",
            f"after {done} ({difference(final, before)} points).",
        )
    else:
        page.lead = ("The class mean on the target is", f"{percent(final)}\u00a0%", "")
    if final is None:
        page.lead = (f"The accuracy of the {'last' if page.record.finished else 'newest'} {unit} is unknown.", "", "")
    told = "the last" if page.record.finished else "the newest"
    cards = [("Zero-shot", zero_shot["class_mean"], "before any training")] if zero_shot else []
    cards += [("Source only", before, "before adaptation")] if source else []
    if reports or not source:
        cards.append(("Final" if page.record.finished else "Now", final, f"{told} {unit}, not chosen by a score"))
    if reports and choice["round"] is not None:
        note = f"{unit} {choice['round']}, where the validator '{validator}' is highest"
        cards.append(("Label-free choice", choice["class_mean"], note))
    if reports and best["round"] is not None:
        note = f"{unit} {best['round']}, best by target labels: a bound, not a result"
        cards.append(("Oracle best", best["class_mean"], note))
    page.cards = [
        Card(
            title,
            f"{percent(value)} %",
            f"class mean, {note}",
            change=difference(value, before) if begun_with and title not in ("Source only", "Zero-shot") else "",
            oracle=True,
            main=title in ("Final", "Now"),
        )
        for title, value, note in cards
    ]


def _label_free_headline(page: RunPage, source: Report | None, last: Report, choice: Report, validator: str) -> None:
    """A target without labels: which weights to take, and why."""
    record, unit = page.record, page.unit
    if not record.reports and record.finished:
        page.lead = ("The target has no labels, so accuracy is unknown. The source model was not adapted.", "", "")
        return
    if not record.reports:
        page.lead = ("The target has no labels. Only the source model is trained so far.", "", "")
        return
    newest, number = record.reports[-1]["round"], choice["round"]
    why = f"where the label-free score '{validator}' is highest"
    if number is None:
        number, why = newest, f"the newest one, because the label-free score '{validator}' is unknown"
    weights = "final" if number == newest and record.finished else "label_free"
    warnings = next(report for report in record.reports if report["round"] == number).get("warnings")
    told = f"Use them: uda predict RUN IMAGES --weights {weights}"
    if warnings:
        told = "Look at the warnings before you use it."
    page.lead = (
        f"The target has no labels, so accuracy is unknown. {'Best by score' if warnings else 'Recommended'}:",
        f"{unit} {number}",
        f"(weights checkpoints/{weights}.safetensors), {why}. {told}",
    )
    scores = [report["validators"].get(validator) for report in record.reports]
    known = [score for score in scores if score is not None]
    page.cards = [
        Card(
            "Best by score" if warnings else "Recommended",
            f"{unit} {number}",
            f"checkpoints/{weights}.safetensors",
            main=True,
        )
    ]
    if known:
        page.cards.append(Card(f"Score '{validator}'", f"{max(known):.3f}", f"last {unit}: {fraction(scores[-1])}"))
    table, first = record.last_table, record.source_table
    if table is not None and first is not None:
        same = float((table.get("prediction") == first.get("prediction")).mean())
        note = "of the images keep the source model's class"
        page.cards.append(Card("Agreement", f"{100 * same:.1f} %", note))
    if "effective_classes" in last:
        note = f"of {len(page.classes)}, by the shares of the predictions"
        page.cards.append(Card("Classes in use", f"{last['effective_classes']:.1f}", note))


def _notices(page: RunPage, source: Report | None) -> list[str]:
    """Warnings that a reader should not overlook."""
    reports, unit, notices = page.record.reports, page.unit, []
    empty = [str(report["round"]) for report in reports if report.get("selected") == 0]
    if empty:
        notices.append(f"No image was selected in round {', '.join(empty)}.")
    notices += _collapse(page, source)
    if page.labelled and reports and page.record.trusted:
        final = reports[-1]["class_mean"]
        best = best_round(reports, [report["class_mean"] for report in reports])
        before = source["class_mean"] if source else None
        if before is not None and final is not None and final < before:
            notices.append("Adaptation made the class mean lower than the source model's (oracle).")
        untouched = (page.record.zero_shot or {}).get("class_mean")
        if untouched is not None and final is not None and final < untouched:
            notices.append("The class mean is lower than that of the untouched network, zero-shot (oracle).")
        if final is not None and best["class_mean"] is not None and best["class_mean"] - final >= NOTABLE_LOSS:
            lost = 100 * (best["class_mean"] - final)
            notices.append(f"The class mean fell by {lost:.1f} points after {unit} {best['round']} (oracle).")
    return notices


def _collapse(page: RunPage, source: Report | None) -> list[str]:
    """Warnings of the last model, the earlier reports with warnings, and what may help."""
    reports, unit = page.record.reports, page.unit
    if reports:
        stage = "self_training" if page.selector else "adaptation"
        notices = [f"After the last {unit}: {warning}." for warning in reports[-1].get("warnings", [])]
        earlier = [str(report["round"]) for report in reports[:-1] if report.get("warnings")]
        if earlier:
            names = f"{unit} {earlier[0]}" if len(earlier) == 1 else f"{len(earlier)} earlier {unit}s"
            notices.append(f"There were warnings in {names} too: see the warnings in results.json.")
    else:
        stage, notices = "source", [f"Source model: {warning}." for warning in (source or {}).get("warnings", [])]
    if notices:
        notices.append(f"{CURES[stage][0].upper()}{CURES[stage][1:]}.")
    return notices


# Tables


def _rounds_table(page: RunPage, source: Report | None) -> tuple[list[Column], list[list[str]]]:
    """The rounds, with the models before them first. Columns without any figure are left out."""
    labelled, chooses = page.labelled, page.selector is not None
    begun_with = _begun_with(page, source)
    before = begun_with["class_mean"] if begun_with else None
    columns: list[tuple[Column, Callable[[Report], str]]] = []

    def add(title: str, value: Callable[[Report], str], oracle: bool = False) -> None:
        columns.append((Column(title, dict(LEGEND).get(title.removesuffix(",\u00a0%"), ""), oracle), value))

    if labelled:
        add("class mean,\u00a0%", lambda report: percent(report["class_mean"]), True)
        if begun_with:
            add("gain", lambda report: difference(report["class_mean"], before) if "round" in report else "", True)
        add("overall,\u00a0%", lambda report: percent(report["overall"]), True)
        add("ECE", lambda report: fraction((report["accuracy"] or {}).get("ece")), True)
    else:
        validator = str(page.record.settings.get("validator", "im"))
        add(validator, lambda report: fraction(report["validators"].get(validator)))
        add(
            "classes in use",
            lambda report: f"{report['effective_classes']:.1f}" if "effective_classes" in report else "",
        )

    def of_choice(value: Callable[[Report], str]) -> Callable[[Report], str]:
        return lambda report: value(report) if "portion" in report else ""

    if chooses:
        add("portion", of_choice(lambda report: f"{report['portion']:.3g}"))
        add("selected", of_choice(lambda report: f"{report['selected']:,}"))
        if page.selector != "softmax":
            add("softmax too", of_choice(lambda report: f"{report['overlap']['both']:,}"))
        if labelled:
            add("TP rate,\u00a0%", of_choice(lambda report: percent(report["tp_rate"])), True)
        for key, digits in (("avc", 3), ("avh", 3), ("confidence", 3), ("feature_norm", 2)):
            title = {"avc": "AVC", "avh": "AVH", "feature_norm": "norm"}.get(key, key)
            add(title, of_choice(lambda report, key=key, digits=digits: fraction(report[key], digits)))
    elif page.record.reports:
        add("steps", lambda report: _count(report["steps"]) if "round" in report else "")
        add("loss", lambda report: fraction(report.get("loss")) if "round" in report else "")
    add("time", lambda report: duration(report["seconds"]))
    rows = [[name, *(value(record) for _, value in columns)] for name, record in _before(page, source)]
    rows += [[str(report["round"]), *(value(report) for _, value in columns)] for report in page.record.reports]
    return [Column(page.unit), *(column for column, _ in columns)], rows


def _class_table(
    page: RunPage, source: Report | None
) -> tuple[list[Column], dict[str, list[tuple[str, float | None]]]]:
    """For each class: accuracy before and after, what the last round chose of it, and how often it is predicted."""
    reports = page.record.reports
    last = reports[-1] if reports else _begun_with(page, source)
    if last is None:
        return [], {}
    chosen = next((report for report in reversed(reports) if "lambda" in report), None)
    earlier = [(name, record) for name, record in _before(page, source) if record is not last]
    shares = [(record.get("accuracy") or {}).get("per_class") or {} for record in (*(r for _, r in earlier), last)]
    *befores, after = shares
    columns, cells = [Column("class")], []
    if page.labelled:
        if earlier:
            before = befores[-1]
            columns += [Column(f"{name}, %", oracle=True) for name in (*(title for title, _ in earlier), "now")]
            columns.append(Column("change", oracle=True))
            cells += [lambda name, of=of: (percent(of.get(name)), of.get(name)) for of in shares]
            cells.append(
                lambda name: (difference(after.get(name), before.get(name)), _minus(after.get(name), before.get(name)))
            )
        else:
            columns.append(Column("accuracy, %", oracle=True))
            cells.append(lambda name: (percent(after.get(name)), after.get(name)))
    counts = last.get("predicted_per_class") or {}
    columns.append(Column("predicted", "number of target images that the newest model predicts as the class"))
    cells.append(lambda name: (f"{counts[name]:,}" if name in counts else "", counts.get(name)))
    if chosen:
        columns += [
            Column("selected", "images of the last round with this pseudo-label"),
            Column("lambda", "threshold of the last round"),
        ]
        selected, thresholds, rates = chosen["selected_per_class"], chosen["lambda"], chosen["tp_rate_per_class"]
        cells += [
            lambda name: (f"{selected[name]:,}", selected[name]),
            lambda name: (fraction(thresholds[name], 4), thresholds[name]),
        ]
        if page.labelled:
            columns.append(Column("TP rate, %", "right pseudo-labels among the selected", oracle=True))
            cells.append(lambda name: (percent(rates[name]), rates[name]))
        for key, title in (("avc", "AVC"), ("avh", "AVH")):
            values = chosen.get(f"{key}_per_class")
            if values:
                columns.append(Column(title, dict(LEGEND)[title]))
                cells.append(lambda name, values=values: (fraction(values[name], 4), values[name]))
    return columns, {name: [cell(name) for cell in cells] for name in page.classes}


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _heat(page: RunPage) -> list[dict[str, Any]]:
    """Class by round: accuracy, TP rate and number chosen."""
    reports = page.record.reports
    chosen = [report for report in reports if "lambda" in report]
    found = []
    if page.labelled and reports:
        by_class = [(report["accuracy"] or {}).get("per_class") for report in reports]
        found.append(heat_map("accuracy", "Accuracy, % (oracle)", reports, by_class, whole_percent))
    if page.labelled and chosen:
        by_class = [report["tp_rate_per_class"] for report in chosen]
        found.append(heat_map("tp-rate", "TP rate, % (oracle)", chosen, by_class, whole_percent))
    if chosen:
        by_class = [report["selected_per_class"] for report in chosen]
        found.append(heat_map("selected", "Images selected", chosen, by_class, _count))
    elif reports and not page.labelled:
        by_class = [report.get("predicted_per_class") for report in reports]
        found.append(heat_map("predicted", "Images predicted", reports, by_class, _count))
    return found


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,}"


def _shares(page: RunPage, source: Report | None) -> tuple[dict[str, dict[str, float | None]], str]:
    """Shares of the classes among the source images, in the predictions, and in what the last round selected."""
    reports = page.record.reports
    last = reports[-1] if reports else source
    chosen = next((report for report in reversed(reports) if "lambda" in report), {})
    found = {
        "source images": (page.record.source or {}).get("source_per_class"),
        "predicted": (last or {}).get("predicted_per_class"),
        "selected": chosen.get("selected_per_class"),
    }
    shares = {
        title: {name: count / max(1, sum(counts.values())) for name, count in counts.items()}
        for title, counts in found.items()
        if counts
    }
    text = "Shares of the classes among the source images and in the predictions of the newest model"
    return shares, f"{text}{', and among the images that the last round selected' if chosen else ''}."


def _domains(page: RunPage, source: Report | None, last: Report | None) -> list[dict[str, Any]]:
    """Class mean before and after for each of several target domains."""

    def means(record: Report | None) -> dict[str, float | None]:
        domains = ((record or {}).get("accuracy") or {}).get("domains") or {}
        return {name: figures["class_mean"] for name, figures in domains.items()}

    after = means(last)
    if not after:
        return []
    earlier = [(name, means(record)) for name, record in _before(page, source) if record is not last]
    titles = [*(f"{name}, %" for name, _ in earlier), "class mean, %", *(["change"] if earlier else [])]
    columns = [Column("domain"), *(Column(title, oracle=True) for title in titles)]
    rows = []
    for name, now in after.items():
        befores = [shares.get(name) for _, shares in earlier]
        change = [difference(now, befores[-1])] if earlier else []
        rows.append([name, *map(percent, befores), percent(now), *change])
    return [{"title": "By target domain", "columns": columns, "rows": rows}]


def _branches(page: RunPage, source: Report | None, selectors: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of several selectors, and which of them was kept."""
    record = page.record
    if len(selectors) < 2:
        return []
    begun = "From one source model all rounds are run once with each selector."
    if record.choice is None:
        folders = {name: record.folder / branch_folder(name) for name in selectors}
        done = {name: len(list(folder.glob("rounds/[0-9]*/report.json"))) for name, folder in folders.items()}
        if isinstance(rounds := record.settings["self_training"].get("rounds"), int):
            page.progress = sum(done.values()), rounds * len(selectors)
        rows = [[name, f"{count}"] for name, count in done.items()]
        links = {name: f"{branch_folder(name)}/report.html" for name, count in done.items() if count}
        text = f"{begun} At the end the run keeps the model with the best label-free score."
        columns = [Column("selector"), Column("rounds done")]
        return [{"title": "Selectors", "text": text, "columns": columns, "rows": rows, "links": links}]
    choice, runs = record.choice, record.choice["runs"]
    names = {name: f"{name}, kept" if name == choice["kept"] else name for name in runs}
    columns = [Column("selector"), Column(f"{choice['validator']}, last round", "label-free score; higher is better")]
    cells = [[names[name], fraction(run["score"])] for name, run in runs.items()]
    if page.labelled:
        columns += [Column("class mean,\u00a0%", oracle=True), Column("overall,\u00a0%", oracle=True)]
        cells = [
            [*row, *(percent(run["final"].get(key)) for key in ("class_mean", "overall"))]
            for row, run in zip(cells, runs.values(), strict=True)
        ]
    columns.append(Column("time", "with the source model, which is trained once"))
    rows = [[*row, duration(run["seconds"])] for row, run in zip(cells, runs.values(), strict=True)]
    numbers = range(len(runs[choice["kept"]]["scores"]))
    score = {name: run["scores"] for name, run in runs.items()}
    reached = {
        name: [None if value is None else 100 * value for value in run["class_means"]] for name, run in runs.items()
    }
    title, baselines = f"Label-free score '{choice['validator']}'", _baselines(page, source)
    curves = [
        Curve("selectors-score", title, numbers, score, "higher is better", "round"),
        Curve("selectors-accuracy", "Class mean (oracle)", numbers, reached, "% right (oracle)", "round", baselines),
    ]
    (why,) = selector_lines(choice)
    return [
        {
            "title": "Selectors",
            "text": f"{begun} {why[0].upper()}{why[1:]}.",
            "columns": columns,
            "rows": rows,
            "links": {names[name]: f"{run['folder']}/report.html" for name, run in runs.items()},
            "figures": [(curve.title, curve.svg()) for curve in curves if curve.known and not record.hurried],
        }
    ]


def _unknown(last: Report | None) -> list[dict[str, Any]]:
    unknown = ((last or {}).get("accuracy") or {}).get("unknown")
    if not unknown:
        return []
    told = ", ".join(f"{title} {fraction(unknown[key])}" for key, title in SEPARATION.items())
    text = (
        f"{unknown['images']:,} target images have classes that the source lacks. The figures above do not count them. "
        f"AUROC with which a score separates them from the other images (0.5 is chance, 1 is best): {told}."
    )
    return [{"title": "Unknown classes (oracle)", "text": text}]


# Figures


def _curves(page: RunPage, source: Report | None) -> list[Curve]:
    """The figures over the rounds."""
    reports, unit = page.record.reports, page.unit
    if not reports:
        return []
    numbers = [report["round"] for report in reports]

    def values(name: str, scale: float = 1) -> list[float | None]:
        return [None if report.get(name) is None else scale * report[name] for report in reports]

    accuracy = {"class mean": values("class_mean", 100), "overall": values("overall", 100)}
    title = f"Accuracy after each {unit} (oracle)"
    baselines = _baselines(page, source)
    curves = [Curve("accuracy", title, numbers, accuracy, "% right (oracle)", unit, baselines)]
    if page.selector:
        curves += _choice_curves(reports, numbers, page.selector, values)
    validator = str(page.record.settings.get("validator", "im"))
    names = [validator, *(name for name in reports[0]["validators"] if name != validator)]
    for name in names if not page.labelled else names[:1]:
        scores = [report["validators"].get(name) for report in reports]
        which = "validator" if name == validator else f"validator-{name}"
        title = f"Label-free score '{name}' after the {unit}"
        curves.append(Curve(which, title, numbers, {name: scores}, "higher is better", unit))
    curves.append(Curve("loss", "Training loss", numbers, {"loss": values("loss")}, "mean training loss", unit))
    return curves


def _choice_curves(
    reports: Sequence[Report], numbers: Sequence[int], selector: str, values: Callable[..., list[float | None]]
) -> list[Curve]:
    """What the rounds chose."""
    overlap = {name: [report["overlap"][name] for report in reports] for name in OVERLAP}
    rates = {"all selected": values("tp_rate", 100)}
    counts = {"selected": values("selected")}
    if selector != "softmax":
        for name, key in ((f"{selector} only", "only_selector"), ("softmax only", "only_softmax")):
            rates[name] = [None if rate is None else 100 * rate for rate in overlap[f"tp_rate_{key}"]]
        counts |= {"softmax too": overlap["both"], f"{selector} only": overlap["only_selector"]}
    angles = {"AVC": values("avc"), "AVH": values("avh")}
    return [
        Curve("tp-rate", "Right pseudo-labels, TP rate (oracle)", numbers, rates, "% right (oracle)", "round"),
        Curve("counts", "Selected images", numbers, counts, "images", "round"),
        Curve("angles", "AVC and AVH of the selected images", numbers, angles, "mean of the selected", "round"),
        Curve("confidence", "Confidence of the selected images", numbers, {"confidence": values("confidence")},
              "mean largest softmax", "round"),
        Curve("norm", "Feature norm of the selected images", numbers, {"norm": values("feature_norm")}, "mean |x|",
              "round"),
    ]  # fmt: skip


def _model(config: AdaptationConfig) -> str:
    head = f"head {config.model.head or 'none'}"
    if config.data.features is not None:
        return f"{head}, on features of {config.data.features}"
    return f"{config.model.backbone}, {head}, input {config.transforms.size} px"


def _facts(record: RunRecord, config: AdaptationConfig | None, classes: Sequence[str]) -> list[tuple[str, str]]:
    """The config in words for a reader."""
    if config is None:
        return []
    facts = [("Data", f"{config.data.dataset or 'own images'}: {' + '.join(config.data.sources)} to "
                      f"{' + '.join(config.data.targets)}")]  # fmt: skip
    if record.last_table is not None:
        truth, count = record.truth, len(record.last_table)
        known = 0 if truth is None else int((truth != NO_LABEL).sum())
        labels = "none known" if known == 0 else "all known" if known == count else f"known for {known:,}"
        facts.append(("Target", f"{count:,} images, {len(classes)} classes, labels {labels}"))
    facts += [
        ("Model", _model(config)),
        ("Method", config.method),
    ]
    if config.ema.decay is not None:
        facts.append(("Teacher", config.ema.told))
    if ADAPTATION_METHODS[config.method].rounds:
        training = config.self_training
        batch = training.batch
        length = f"{training.steps} steps" if training.steps else f"{training.epochs} epochs"
        facts += [
            ("Selector", ", ".join(training.selectors)),
            ("Regulariser", training.regularizer),
            ("Rounds", f"{training.rounds} of {length}"),
            ("Portion", _schedule(training.portion)),
            ("Source share", _schedule(training.source_share)),
            ("Batch", f"{batch.mixed} mixed" if batch.mixed else f"{batch.source} source + {batch.selected} selected"),
            ("Domains", f"{training.forward} forward pass, BatchNorm {training.batch_norm}"),
            ("Optimiser", _optimizer(training.optim)),
        ]
    if ADAPTATION_METHODS[config.method].adapts:
        adaptation = config.adaptation
        batch = adaptation.batch
        facts += [
            ("Settings", method_settings_text(config)),
            ("Steps", f"{adaptation.steps}, a report every {adaptation.interval}"),
            ("Batch", f"{batch.source} source + {batch.target} target"),
            ("Domains", f"{adaptation.forward} forward pass, BatchNorm {adaptation.batch_norm}"),
            ("Optimiser", _optimizer(adaptation.optim)),
        ]
    return [*((name, value) for name, value in facts if value), ("Seed", str(config.seed))]


def _optimizer(optim) -> str:
    return f"{optim.name}, learning rate {optim.lr:g} (backbone x {optim.backbone_lr_scale:g})"


def _schedule(schedule) -> str:
    return f"{schedule.start:g}, + {schedule.step:g} per round, at most {schedule.max:g}"
