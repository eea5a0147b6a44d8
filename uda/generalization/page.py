"""The page of a run of domain generalisation: what it says beyond what all pages of runs show."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from uda.core.errors import UserError
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import names_of
from uda.generalization.results import CHOICES, choice_of, hardness_seen, of_the_last_stage, seen_per_class
from uda.generalization.stages import stage_steps
from uda.models.losses import LOSSES
from uda.report import figures
from uda.report.html import duration, method_settings_text
from uda.report.page import (
    NO_HEADLINE,
    NOTABLE_LOSS,
    Card,
    Column,
    Curve,
    RunPage,
    Words,
    heat_map,
    short_name,
    whole_percent,
)
from uda.report.run_record import RunRecord
from uda.report.terminal import ZERO_SHOT_NAME, difference, fraction, percent

Report = Mapping[str, Any]

SEEN, UNSEEN = "seen, held out", "unseen (oracle)"
#: Classes whose accuracy differs most between seen and unseen images are named at the top.
MOST_GAPS = 3

LEGEND = (
    (ZERO_SHOT_NAME, "the network before any training, with the class vectors of model.classifier."),
    ("oracle", "needs labels of the unseen domain. Training and the validation choice never see them."),
    ("seen", "a domain that the run trains on."),
    ("held out", "images of a seen domain that the run does not train on; the mean over the seen domains."),
    ("unseen", "the domain that the run never trains on: share of right predictions."),
    ("class mean", "mean of the accuracies of the classes on the unseen domain."),
    ("ECE", "expected calibration error on the unseen domain: how far confidence is from accuracy, 0 is best."),
    ("AVH", "angular visual hardness (Chen et al., ICML 2020) of the true label, mean of the images; high is hard. It "
            "is in units of 1 / K for K classes: an image at equal angles to all classes has 1."),
    ("validation choice", "the report of the last stage with the highest mean accuracy on held-out images."),
    ("loss", "mean training loss since the report before."),
)  # fmt: skip


def generalization_page(record: RunRecord, config: GeneralizationConfig | None) -> RunPage:
    """The page of a run, finished or not. `config` is None if this version of uda cannot read it."""
    reports, zero_shot = record.reports, record.zero_shot
    target = str(record.settings.get("target") or "the unseen domain")
    seen = _seen(record, config)
    names = short_domains([*seen, target])
    page = RunPage(
        record=record,
        config=config,
        classes=_classes(record),
        unit="report",
        heading=f"{record.settings.get('name', record.folder.name)}",
        subtitle=_subtitle(record, config, names),
        main_curve="accuracy",
        facts=_facts(record, config, target),
        legend=[entry for entry in LEGEND if zero_shot or entry[0] != ZERO_SHOT_NAME],
        words=Words(
            "unseen",
            "seen",
            "unseen",
            "need labels of the unseen domain. Training and the validation choice never see them.",
        ),
        compared={} if record.held_out is None else {SEEN: record.held_out},
        progress=None if config is None else (len(reports), sum(map(len, stage_steps(config)))),
        files="results.json, and report.json, images.parquet and held_out.parquet in rounds/NN/",
    )
    if not reports:
        told = "There are no figures yet." if zero_shot is None else "So far only the untouched network was tested."
        page.lead = (told, "", "")
        return page
    _headline(page, names[target])
    page.notices = _notices(page)
    chosen = choice_of(reports)
    before = {} if chosen is reports[-1] else chosen["accuracy"]["per_class"]
    page.reference = (f"at report {chosen['round']}, the validation choice,", before)
    page.columns, page.rows = _reports_table(reports, zero_shot)
    page.rows_text = (
        "Held out: images of each seen domain that are not used for training. The report with the highest mean over "
        "the domains is the validation choice."
    )
    page.curves = _curves(reports, names, zero_shot)
    page.class_columns, page.class_rows = _class_table(page)
    unseen, held_out = [report["accuracy"]["per_class"] for report in reports], list(map(seen_per_class, reports))
    page.heat = [
        heat_map("unseen", "Unseen domain, % (oracle)", reports, unseen, whole_percent),
        heat_map("held-out", "Held-out images, %", reports, held_out, whole_percent),
    ]
    page.confusion = reports[-1]["accuracy"]["confusion"]
    page.extra = [_hardness(page, names[target]), _by_domain(reports, names)]
    return page


def loss_settings(config: GeneralizationConfig) -> str:
    """The config's loss with all its settings, defaults included: `avh, scale 10.0`."""
    options = LOSSES[config.model.loss](**config.model.loss_options)
    return ", ".join([config.model.loss, *(f"{name.replace('_', ' ')} {value}" for name, value in options)])


def network_text(config: GeneralizationConfig) -> str:
    """The network, and what it is trained on: images, or the features of a bank."""
    model = config.model
    if config.data.features is None:
        return f"{model.backbone}, head {model.head or 'none'}, input {config.transforms.size} px"
    made_by, bank = config.bank.partition(" ")[0], PurePath(config.data.features).name
    features = "your own features" if made_by == "arrays" else f"features of {made_by}"
    return f"{features} ({bank}), head {model.head or 'none'}"


def short_domains(names: Sequence[str]) -> dict[str, str]:
    """A name for readers of each domain. Of a path only the last part is shown, unless two would be called the same."""
    parts = {name: short_name(PurePath(name).name or name) for name in names}
    return {name: part if list(parts.values()).count(part) == 1 else name for name, part in parts.items()}


def _seen(record: RunRecord, config: GeneralizationConfig | None) -> list[str]:
    """The seen domains, by the reports or by the config."""
    if record.reports:
        return list(record.reports[-1]["seen"])
    if config is None:
        return []
    try:
        return [name for name in names_of(config) if name != config.target]
    except UserError:  # the card is not on this machine
        return []


def _classes(record: RunRecord) -> tuple[str, ...]:
    if record.last_table is not None:
        return record.last_table.classes
    return tuple(record.reports[-1]["accuracy"]["per_class"]) if record.reports else ()


def _subtitle(record: RunRecord, config: GeneralizationConfig | None, names: Mapping[str, str]) -> str:
    *seen, target = names.values()
    settings = record.settings
    seed = f"seed {settings['seed']}" if "seed" in settings else ""
    pair = f"{', '.join(seen)} → {target}" if seen else f"to {target}"
    if config is None:
        return " · ".join(filter(None, [seed, pair, str(settings.get("method", ""))]))
    return " · ".join([seed, pair, config.method, f"loss {config.model.loss}", config.model.backbone])


# At the top


def _headline(page: RunPage, target: str) -> None:
    """The sentence and the cards at the top."""
    record, reports = page.record, page.record.reports
    if not record.trusted:
        page.lead = (NO_HEADLINE, "", "")
        return
    last = reports[-1]
    page.lead = (
        f"The accuracy on the unseen domain {target} is",
        f"{percent(last['overall'])}\u00a0%",
        f"after {last['steps']:,} steps. On the held-out images of the seen domains it is "
        f"{percent(last['validation'])} %, as the mean of {len(last['seen'])} domain"
        f"{'' if len(last['seen']) == 1 else 's'}.",
    )
    found = {"final": last, "validation_choice": choice_of(reports), "oracle_best": _best(reports)}
    told = "the last report" if record.finished else "the newest report"
    notes = {
        "final": f"{told}; nothing is chosen",
        "validation_choice": "best on the seen domains' held-out images",
        "oracle_best": "best by target labels: a bound, not a result",
    }
    if untouched := record.zero_shot:
        note = f"accuracy on {target}, before any training; class mean {percent(untouched['class_mean'])}"
        page.cards.append(Card("Zero-shot", f"{percent(untouched['overall'])} %", note, oracle=True))
    for key, report in found.items():
        note = notes[key] if key == "final" else f"report {report['round']}, {notes[key]}"
        page.cards.append(
            Card(
                "Now" if key == "final" and not record.finished else CHOICES[key][0],
                f"{percent(report['overall'])} %",
                f"accuracy on {target}, {note}; class mean {percent(report['class_mean'])}",
                oracle=True,
                main=key == "final",
            )
        )


def _best(reports: Sequence[Report]) -> Report:
    return max(of_the_last_stage(reports), key=lambda report: report["overall"])


def _notices(page: RunPage) -> list[str]:
    """What a reader should not overlook: a fall after the best report, and where seen and unseen images differ most."""
    if not page.record.trusted:
        return []
    reports, notices = page.record.reports, []
    last, best = reports[-1], _best(reports)
    if best["overall"] - last["overall"] >= NOTABLE_LOSS:
        lost = 100 * (best["overall"] - last["overall"])
        notices.append(
            f"After report {best['round']}, accuracy on the unseen domain fell by {lost:.1f} points (oracle)."
        )
    held_out, unseen = seen_per_class(last), last["accuracy"]["per_class"]
    gaps = [
        (share - unseen[name], name)
        for name, share in held_out.items()
        if share is not None and unseen[name] is not None and share - unseen[name] >= NOTABLE_LOSS
    ]
    gaps.sort(key=lambda gap: -gap[0])
    for gap, name in gaps[:MOST_GAPS]:
        notices.append(
            f"{short_name(name)}: {100 * held_out[name]:.1f} % of the held-out images are right, and "
            f"{100 * unseen[name]:.1f} % of the unseen ones, {100 * gap:.1f} points less (oracle)."
        )
    if len(gaps) > MOST_GAPS:
        notices.append(
            f"{len(gaps) - MOST_GAPS} more classes are worse by {100 * NOTABLE_LOSS:.0f} points or more on unseen "
            "images (oracle)."
        )
    return notices


# Tables


def _reports_table(reports: Sequence[Report], zero_shot: Report | None) -> tuple[list[Column], list[list[str]]]:
    """The untouched network, if there is one, and the reports, with the one that each choice picks."""
    explained = dict(LEGEND)
    chosen, best = choice_of(reports), _best(reports)

    def chosen_by(report: Report) -> str:
        by = {"validation": report is chosen, "oracle": report is best}
        return ", ".join(name for name, picks in by.items() if picks)

    columns: list[tuple[Column, Callable[[Report], str]]] = [
        (Column("steps"), lambda report: f"{report['steps']:,}"),
        (Column("loss", explained["loss"]), lambda report: fraction(report["loss"])),
        (Column("held out, %", explained["held out"]), lambda report: percent(report["validation"])),
        (Column("unseen, %", explained["unseen"], True), lambda report: percent(report["overall"])),
        (Column("class mean, %", explained["class mean"], True), lambda report: percent(report["class_mean"])),
        (Column("ECE", explained["ECE"], True), lambda report: fraction(report["accuracy"]["ece"])),
        (Column("AVH, held out", explained["AVH"]), lambda report: fraction(hardness_seen(report)["mean"])),
        (Column("AVH, unseen", explained["AVH"], True), lambda report: fraction(report["hardness"]["mean"])),
        (Column("chosen by", "Final models are not chosen. These two choices are told beside them."), chosen_by),
        (Column("time"), lambda report: duration(report["seconds"])),
    ]
    if any("stage" in report and report["stage"] for report in reports):
        columns.insert(0, (Column("stage", "stage of the method, from 0"), lambda report: str(report["stage"])))
    rows = [[str(report["round"]), *(value(report) for _, value in columns)] for report in reports]
    if zero_shot:
        of_all = ("held out, %", "unseen, %", "class mean, %", "ECE", "time")
        cells = (value(zero_shot) if column.title in of_all else "" for column, value in columns)
        rows.insert(0, [ZERO_SHOT_NAME, *cells])
    return [Column("report"), *(column for column, _ in columns)], rows


def _class_table(page: RunPage) -> tuple[list[Column], dict[str, list[tuple[str, float | None]]]]:
    """For each class: accuracy on seen and unseen images, their difference, and how often it is predicted."""
    last, table = page.record.reports[-1], page.record.last_table
    held_out, unseen = seen_per_class(last), last["accuracy"]["per_class"]
    columns = [
        Column("class"),
        Column("seen, held out, %", "accuracy on the held-out images of all seen domains"),
        Column("unseen, %", "accuracy on the unseen domain", True),
        Column("difference", "points by which the unseen domain is better", True),
    ]
    rows: dict[str, list[tuple[str, float | None]]] = {}
    for name in page.classes:
        own, other = unseen.get(name), held_out.get(name)
        gap = None if own is None or other is None else own - other
        rows[name] = [(percent(other), other), (percent(own), own), (difference(own, other), gap)]
    if table is not None:
        columns += [
            Column("images", "number of images of the class in the unseen domain", True),
            Column("predicted", "number of images of the unseen domain that the newest model predicts as the class"),
        ]
        for number, name in enumerate(page.classes):
            for column in ("label", "prediction"):
                count = int((table.get(column) == number).sum())
                rows[name].append((f"{count:,}", count))
    return columns, rows


def _by_domain(reports: Sequence[Report], names: Mapping[str, str]) -> dict[str, Any]:
    """Accuracy on each seen domain's held-out images at each report."""
    domains = list(reports[-1]["seen"])
    rows = [
        [
            str(report["round"]),
            *(percent(report["seen"][name]["accuracy"]["overall"]) for name in domains),
            percent(report["validation"]),
        ]
        for report in reports
    ]
    heads = [*(f"{names[name]}, %" for name in domains), "mean, %"]
    return {
        "title": "Held-out images by domain",
        "text": "",
        "columns": [Column("report"), *(Column(head) for head in heads)],
        "rows": rows,
    }


# Figures


def _curves(reports: Sequence[Report], names: Mapping[str, str], zero_shot: Report | None) -> list[Curve]:
    """The figures over the steps."""
    steps = [report["steps"] for report in reports]

    def values(name: str, scale: float = 1) -> list[float | None]:
        return [None if report.get(name) is None else scale * report[name] for report in reports]

    held_out = {
        names[name]: [100 * report["seen"][name]["accuracy"]["overall"] for report in reports]
        for name in reports[-1]["seen"]
    }
    panels = (
        ("accuracy", "Accuracy on seen and unseen images", {SEEN: values("validation", 100),
         UNSEEN: values("overall", 100)}, "% right"),
        ("held-out", "Held-out images of each seen domain", held_out, "% right"),
        ("unseen", "The unseen domain (oracle)", {"accuracy": values("overall", 100),
         "class mean": values("class_mean", 100)}, "% right (oracle)"),
        ("avh", "Mean AVH", {SEEN: [hardness_seen(report)["mean"] for report in reports],
         UNSEEN: [report["hardness"]["mean"] for report in reports]}, "AVH, in units of 1 / K"),
        ("ece", "Calibration error (oracle)", {"ECE": [report["accuracy"]["ece"] for report in reports]},
         "ECE (oracle)"),
        ("loss", "Training loss", {"loss": values("loss")}, "mean training loss"),
    )  # fmt: skip
    untouched = [(ZERO_SHOT_NAME, 100 * zero_shot["overall"])] if zero_shot else []
    return [
        Curve(name, title, steps, series, ylabel, "steps", untouched if name in ("accuracy", "unseen") else ())
        for name, title, series, ylabel in panels
    ]


def _hardness(page: RunPage, target: str) -> dict[str, Any]:
    """Histograms of AVH on seen and unseen images."""
    last = page.record.reports[-1]
    seen, unseen = hardness_seen(last), last["hardness"]
    section: dict[str, Any] = {
        "title": "Hardness of seen and unseen images",
        "text": "AVH with the true label, in units of 1 / K. An image at equal angles to all classes has 1; lower is "
        f"easier. The mean is {fraction(seen['mean'])} on held-out images of the seen domains and "
        f"{fraction(unseen['mean'])} on {target} (oracle).",
    }
    if not page.record.hurried:
        figure = figures.hardness_figure({"": {SEEN: seen["histogram"], UNSEEN: unseen["histogram"]}})
        text = (
            f"Histograms of AVH: mean {fraction(seen['mean'])} on held-out images, {fraction(unseen['mean'])} on the "
        )
        section["figures"] = [("", figures.to_svg(figure, "hardness", f"{text}unseen domain."))]
    return section


# Below


def _facts(record: RunRecord, config: GeneralizationConfig | None, target: str) -> list[tuple[str, str]]:
    """The config in words for a reader."""
    if config is None:
        return []
    last, classes = record.reports[-1] if record.reports else None, len(_classes(record))
    training = config.training
    facts = [("Data", f"{config.data.dataset or 'own images'}{f', {classes} classes' if classes else ''}")]
    if last is not None:
        count = sum(map(sum, last["accuracy"]["confusion"]))
        facts.append(("Unseen", f"{target}, {count:,} images, used for measuring only"))
        counts = {name: (found.get("training"), found.get("held_out")) for name, found in last["seen"].items()}
        told = ", ".join(
            name if None in (trained, held) else f"{name} ({trained:,} + {held:,})"
            for name, (trained, held) in counts.items()
        )
        facts.append(("Seen", f"{told} images for training + held out"))
    facts += [
        ("Model", network_text(config)),
        ("Method", config.method),
        ("Settings", method_settings_text(config)),
        ("Loss", loss_settings(config)),
        ("Steps", f"{training.steps:,} of {training.batch_size} images of each seen domain, one report every "
                  f"{training.interval:,}"),
        ("BatchNorm", "batch statistics" if training.batch_norm == "train" else "frozen running statistics"),
        ("Teacher", "" if config.ema.decay is None else config.ema.told),
        ("Seed", str(config.seed)),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]
