"""The page of a supervised run: what it says beyond what all pages of runs show."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from uda.hardness.dynamics.config import SupervisedConfig
from uda.report.page import NOTABLE_LOSS, Card, Column, Curve, RunPage, Words, heat_map, whole_percent
from uda.report.run_record import RunRecord
from uda.report.terminal import difference, fraction, percent

#: Scores that have a figure: name, title, and label of the axis.
DRAWN = {
    "avh": ("Mean AVH", "AVH, 0 to 1"),
    "confidence": ("Mean confidence", "softmax of the label"),
    "norm": ("Mean norm of the feature", "|x|"),
    "loss": ("Mean loss of the test images", "nats"),
}
LEGEND = (
    ("accuracy", "share of right predictions among the test images."),
    ("ECE", "expected calibration error: how far confidence is from accuracy, 0 is best."),
    ("AVH", "angular visual hardness (Chen et al., ICML 2020) of the true label, mean of the images; high is hard."),
    ("confidence", "softmax probability of the true label, mean of the images."),
    ("norm", "length of the feature, mean of the images."),
    ("epoch 0", "the network before training."),
)


def supervised_page(record: RunRecord, config: SupervisedConfig | None) -> RunPage:
    """The page of a run, finished or not. `config` is None if this version of uda cannot read it."""
    # All pages count reports as rounds.
    reports = [
        {**epoch, "round": epoch["epoch"], "accuracy": {"per_class": epoch["per_class"], "ece": epoch["ece"]}}
        for epoch in record.reports
    ]
    record = replace(record, reports=reports)
    page = RunPage(
        record=record,
        config=config,
        classes=tuple(reports[-1]["per_class"]) if reports else (),
        unit="epoch",
        heading=f"{record.settings.get('name', record.folder.name)}",
        subtitle=_subtitle(record, config),
        main_curve="accuracy",
        facts=_facts(config),
        legend=list(LEGEND),
        words=Words("test", "training", why_marked=None, mark=""),
        progress=None if config is None else (max(0, len(reports) - 1), config.training.epochs),
        files="results.json, epochs/NN.json, epochs/NN.npz, scores.csv",
    )
    if not reports:
        page.lead = ("There are no figures yet.", "", "")
        return page
    best = max(reports, key=lambda report: report["overall"])
    _headline(page, best)
    page.reference = (f"at epoch {best['round']}, the best one,", {} if best is reports[-1] else best["per_class"])
    page.columns, page.rows = _table(reports)
    page.curves = _curves(reports)
    page.class_columns = [Column("class"), Column("accuracy, %"), Column(f"epoch {best['round']}, the best, %")]
    page.class_columns.append(Column("change since then"))
    after, before = reports[-1]["per_class"], best["per_class"]
    page.class_rows = {
        name: [
            (percent(share), share),
            (percent(before[name]), before[name]),
            (difference(share, before[name]), None if None in (share, before[name]) else share - before[name]),
        ]
        for name, share in after.items()
    }
    by_class = [report["per_class"] for report in reports]
    page.heat = [heat_map("accuracy", "Accuracy, %", reports, by_class, whole_percent)]
    return page


def _subtitle(record: RunRecord, config: SupervisedConfig | None) -> str:
    seed = f"seed {record.settings['seed']}" if "seed" in record.settings else ""
    if config is None:
        return seed
    data = config.data
    pair = f"{data.dataset or 'own images'}: trained on {data.train}, scored on {data.test}"
    return f"{seed} · {pair} · {config.model.backbone}"


def _headline(page: RunPage, best: Mapping[str, Any]) -> None:
    """The sentence, the cards and the warning at the top."""
    if not page.record.trusted:
        page.lead = ("There is no headline, because the records of this run contradict one another.", "", "")
        return
    last = page.record.reports[-1]
    epochs = f"{last['round']} epoch{'' if last['round'] == 1 else 's'}"
    page.lead = ("The accuracy on the test images is", f"{percent(last['overall'])}\u00a0%", f"after {epochs}.")
    told = "after the last epoch" if page.record.finished else "after the newest epoch"
    page.cards = [
        Card("Accuracy", f"{percent(last['overall'])} %", f"{told}; nothing is chosen", main=True),
        Card("Best epoch", f"{percent(best['overall'])} %", f"epoch {best['round']}, by the test images: a bound"),
    ]
    scores = last["scores"]
    for name, title in (("avh", "Mean AVH"), ("confidence", "Mean confidence")):
        if name in scores:
            page.cards.append(Card(title, fraction(scores[name]), f"of the test images, {told}"))
    if best["overall"] - last["overall"] >= NOTABLE_LOSS:
        lost = 100 * (best["overall"] - last["overall"])
        page.notices.append(f"After epoch {best['round']}, accuracy on the test images fell by {lost:.1f} points.")


def _table(reports: list[dict[str, Any]]) -> tuple[list[Column], list[list[str]]]:
    """The epochs, with the means of all scores."""
    explained, scores = dict(LEGEND), list(reports[-1]["scores"])
    titles = {"avh": "AVH", "avc": "AVC", "top_avc": "largest AVC"}
    columns = [Column("epoch"), Column("steps"), Column("training loss"), Column("accuracy, %", explained["accuracy"])]
    columns.append(Column("ECE", explained["ECE"]))
    for name in scores:
        title = titles.get(name, name.replace("_", " "))
        columns.append(Column(title, explained.get(title, "mean of the test images")))
    rows = [
        [
            str(report["round"]),
            f"{report['steps']:,}",
            fraction(report["train_loss"]),
            percent(report["overall"]),
            fraction(report["ece"]),
            *(fraction(report["scores"].get(name)) for name in scores),
        ]
        for report in reports
    ]
    return columns, rows


def _curves(reports: list[dict[str, Any]]) -> list[Curve]:
    """The figures over the epochs."""
    epochs = [report["round"] for report in reports]
    accuracy = {"accuracy": [100 * report["overall"] for report in reports]}
    curves = [Curve("accuracy", "Accuracy on the test images", epochs, accuracy, "% right", "epoch")]
    for name, (title, ylabel) in DRAWN.items():
        means = [report["scores"].get(name) for report in reports]
        curves.append(Curve(f"score-{name}", title, epochs, {name: means}, ylabel, "epoch"))
    errors = {"ECE": [report["ece"] for report in reports]}
    losses = {"training loss": [report["train_loss"] for report in reports]}
    return [
        *curves,
        Curve("ece", "Calibration error", epochs, errors, "ECE", "epoch"),
        Curve("loss", "Training loss", epochs, losses, "mean training loss", "epoch"),
    ]


def _facts(config: SupervisedConfig | None) -> list[tuple[str, str]]:
    """The config in words for a reader."""
    if config is None:
        return []
    data, training, model = config.data, config.training, config.model
    return [
        ("Data", data.dataset or "own images"),
        ("Trained on", data.train),
        ("Scored on", data.test),
        ("Model", f"{model.backbone}, head {model.head or 'none'}, input {config.transforms.size} px"),
        ("Training", f"{training.epochs} epochs, batches of {training.batch_size} images"),
        ("Optimiser", f"{training.optim.name}, learning rate {training.optim.lr:g}, {training.optim.schedule}"),
        ("Seed", str(config.seed)),
    ]
