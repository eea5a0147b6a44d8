"""`report.html` of a run of domain generalisation, a single file without links to others, and the summary page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import SeenAndUnseen
from uda.models.losses import LOSSES
from uda.report import figures
from uda.report.html import method_settings_text, template
from uda.report.page import NOTABLE_LOSS

MOST_BARS = 40

#: The three figures of a run: key in `results.json`, name, and explanation.
CHOICES = {
    "final": ("Final", "the last report; nothing is chosen"),
    "validation_choice": (
        "Validation choice",
        "the report of the last stage that is best on the seen domains' held-out images",
    ),
    "oracle_best": (
        "Oracle best",
        "the report of the last stage that is best by target labels: a bound, not a result",
    ),
}
SEEN, UNSEEN = "seen, held out", "unseen (oracle)"


def render_page(
    config: GeneralizationConfig,
    domains: SeenAndUnseen,
    rounds: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
) -> str:
    """The page of a run.

    Args:
        config: the run's config, with its target.
        domains: the seen domains and the unseen domain.
        rounds: records of the reports, in order; at least one.
        results: content of `results.json`.
    """
    final = rounds[-1]
    return template("generalization.html").render(
        config=config,
        seen_names=[seen.name for seen in domains.seen],
        facts=_facts(config, domains),
        cards=_cards(results),
        notices=_notices(results),
        rounds=[{**record, "hardness_seen": hardness_seen(record)["mean"]} for record in rounds],
        results=results,
        curves=_curves(rounds),
        bars=_bars(final, domains.classes),
        class_rows=[(name, held, final["accuracy"]["per_class"][name]) for name, held in seen_per_class(final).items()],
        confusion=figures.to_svg(
            figures.confusion_figure(final["accuracy"]["confusion"], domains.classes),
            "confusion",
            "Confusion matrix of the unseen domain, final model, in per cent of each true class.",
        ),
        hardness=_hardness(final),
        yaml=config.to_yaml(),
    )


def hardness_seen(record: Mapping[str, Any]) -> dict[str, Any]:
    """AVH of the held-out images of all seen domains: `mean` and `histogram`, as `accuracy.hardness` gives them."""
    of_each = [found["hardness"] for found in record["seen"].values()]
    counts = np.array([hardness["histogram"] for hardness in of_each])
    mean = np.average([hardness["mean"] for hardness in of_each], weights=counts.sum(1))
    return {"mean": float(mean), "histogram": counts.sum(0).tolist()}


def seen_per_class(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Accuracy by class on the held-out images of all seen domains; None for a class without images."""
    confusion = np.sum([found["accuracy"]["confusion"] for found in record["seen"].values()], axis=0)
    shares = zip(record["accuracy"]["per_class"], confusion.diagonal(), confusion.sum(1), strict=True)
    return {name: float(right / total) if total else None for name, right, total in shares}


def loss_settings(config: GeneralizationConfig) -> str:
    """The config's loss with all its settings, defaults included: `avh, scale 10.0`."""
    options = LOSSES[config.model.loss](**config.model.loss_options)
    return ", ".join([config.model.loss, *(f"{name.replace('_', ' ')} {value}" for name, value in options)])


def _facts(config: GeneralizationConfig, domains: SeenAndUnseen) -> list[tuple[str, str]]:
    """The config as pairs of a name and a value for a reader."""
    training, model = config.training, config.model
    seen = ", ".join(f"{seen.name} ({len(seen.training)} + {len(seen.validation)})" for seen in domains.seen)
    facts = [
        ("Data", f"{config.data.dataset or 'own images'}, {len(domains.classes)} classes"),
        ("Unseen", f"{domains.name}, {len(domains.unseen.images)} images, used for measuring only"),
        ("Seen", f"{seen} images for training + held out"),
        ("Model", f"{model.backbone}{' (frozen)' if training.frozen_backbone else ''}, head {model.head or 'none'}, "
                  f"input {config.transforms.size} px"),
        ("Method", config.method),
        ("Settings", method_settings_text(config)),
        ("Loss", loss_settings(config)),
        ("Steps", f"{training.steps} of {training.batch_size} images of each seen domain, one report every "
                  f"{training.interval}"),
        ("BatchNorm", "batch statistics" if training.batch_norm == "train" else "frozen running statistics"),
        ("Seed", str(config.seed)),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]


def _cards(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures at the top of the page."""
    cards = []
    for key, (title, note) in CHOICES.items():
        found = results[key]
        numbered = note if key == "final" else note.replace("the report", f"report {found['round']}", 1)
        cards.append({"title": title, "value": found["overall"], "class_mean": found["class_mean"], "note": numbered})
    return cards


def _notices(results: Mapping[str, Any]) -> list[str]:
    """Warnings at the top of the page."""
    final, best = results["final"]["overall"], results["oracle_best"]
    if best["overall"] - final < NOTABLE_LOSS:
        return []
    lost = 100 * (best["overall"] - final)
    return [f"After report {best['round']}, accuracy on the unseen domain fell by {lost:.1f} points (oracle)."]


def _curves(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The figures over the steps, each with a title. Each SVG has a description for readers who cannot see it."""
    steps = [record["steps"] for record in rounds]
    held_out = {
        name: [100 * record["seen"][name]["accuracy"]["overall"] for record in rounds] for name in rounds[0]["seen"]
    }
    unseen = {
        "accuracy": [100 * record["overall"] for record in rounds],
        "class mean": [100 * record["class_mean"] for record in rounds],
    }
    angles = {
        SEEN: [hardness_seen(record)["mean"] for record in rounds],
        UNSEEN: [record["hardness"]["mean"] for record in rounds],
    }
    losses = {"loss": [record["loss"] for record in rounds]}
    panels = (
        ("held-out", "Held-out images of each seen domain", held_out, "% right"),
        ("unseen", "The unseen domain (oracle)", unseen, "% right (oracle)"),
        ("avh", "Mean AVH", angles, "AVH, in units of 1 / K"),
        ("loss", "Training loss", losses, "mean training loss"),
    )
    drawn = []
    for name, title, series, ylabel in panels:
        ends = "; ".join(f"{key} from {values[0]:.3g} to {values[-1]:.3g}" for key, values in series.items())
        figure = figures.curves_figure(steps, series, ylabel, xlabel="steps")
        drawn.append({"title": title, "svg": figures.to_svg(figure, name, f"{title} by step: {ends}.")})
    return drawn


def _bars(final: Mapping[str, Any], classes: Sequence[str]) -> dict[str, str]:
    """Accuracy by class on held-out images and on the unseen domain.

    If there are many classes, only those with the lowest accuracy on the unseen domain are drawn.
    """
    held_out, unseen = seen_per_class(final), final["accuracy"]["per_class"]
    names, note = list(classes), ""
    if len(names) > MOST_BARS:
        kept = set(sorted(names, key=lambda name: (unseen[name] is None, unseen[name] or 0))[:MOST_BARS])
        names = [name for name in names if name in kept]
        note = (
            f"The figure shows {MOST_BARS} of {len(classes)} classes: those with the lowest accuracy on the unseen "
            "domain. The table has all classes."
        )
    figure = figures.classes_figure({SEEN: held_out, UNSEEN: unseen}, names, "accuracy of the final model, %")
    description = "Accuracy by class on held-out images of the seen domains and on the unseen domain, as in the table."
    return {"svg": figures.to_svg(figure, "classes", description), "note": note}


def _hardness(final: Mapping[str, Any]) -> dict[str, Any]:
    seen, unseen = hardness_seen(final), final["hardness"]
    figure = figures.hardness_figure({"": {SEEN: seen["histogram"], UNSEEN: unseen["histogram"]}})
    description = (
        f"Histograms of AVH: mean {seen['mean']:.3f} on held-out images, {unseen['mean']:.3f} on the unseen domain."
    )
    return {"svg": figures.to_svg(figure, "hardness", description), "seen": seen["mean"], "unseen": unseen["mean"]}


def render_summary(
    configs: Sequence[GeneralizationConfig], summary: Mapping[str, Any], links: Mapping[str, Mapping[str, str]]
) -> str:
    """The summary page of several configs.

    Args:
        configs: the configs, one per row.
        summary: the result of `uda.generalization.summary.summarise_runs` for these configs.
        links: addresses of the runs' pages relative to this page, by the config's name and the unseen domain.
    """
    return template("generalization_summary.html").render(
        configs=configs,
        choices=CHOICES,
        targets=summary["targets"],
        rows=summary["rows"],
        missing=[
            f"{row['config']} has no finished run yet for: {', '.join(without)}. Its average needs these runs."
            for row in summary["rows"]
            if (without := [name for name in summary["targets"] if name not in row["folders"]])
        ],
        links=links,
        losses=[loss_settings(config) for config in configs],
        settings=[method_settings_text(config) for config in configs],
        panels=[
            (row["config"], _hardness_by_target(number, row))
            for number, row in enumerate(summary["rows"])
            if row["hardness"]
        ],
    )


def _hardness_by_target(number: int, row: Mapping[str, Any]) -> str:
    """The AVH histograms of a config's runs, one panel per unseen domain."""
    panels = {
        name: {SEEN: groups["seen"]["histogram"], UNSEEN: groups["unseen"]["histogram"]}
        for name, groups in row["hardness"].items()
    }
    means = "; ".join(
        f"{name} {groups['seen']['mean']:.3f} and {groups['unseen']['mean']:.3f}"
        for name, groups in row["hardness"].items()
    )
    description = f"Histograms of AVH by unseen domain; means of held-out images and of the unseen domain: {means}."
    return figures.to_svg(figures.hardness_figure(panels), f"hardness-{number}", description)
