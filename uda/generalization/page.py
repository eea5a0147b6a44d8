"""`report.html` of a run that leaves one domain out: one file that holds all it shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import SeenAndUnseen
from uda.models.losses import LOSSES
from uda.report import figures
from uda.report.html import MOST_BARS, NOTABLE_LOSS, method_settings, template

#: The three figures of a run: their key in `results.json`, their name, and what they are.
CHOICES = {
    "final": ("Final", "the last report; nothing picked"),
    "validation_choice": (
        "Validation choice",
        "the report, of the last stage, that is best on the seen domains' held-out images",
    ),
    "oracle_best": (
        "Oracle best",
        "the report, of the last stage, picked by the unseen domain's labels: a bound, not a result",
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
        domains: what it was trained and tested on.
        rounds: records of the reports, in order; one at least.
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
    """AVH of all seen domains' held-out images together: `mean` and `histogram`, as `evaluation.hardness` has them."""
    of_each = [judged["hardness"] for judged in record["seen"].values()]
    counts = np.array([hardness["histogram"] for hardness in of_each])
    mean = np.average([hardness["mean"] for hardness in of_each], weights=counts.sum(1))
    return {"mean": float(mean), "histogram": counts.sum(0).tolist()}


def seen_per_class(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Accuracy by class on all seen domains' held-out images together; None for a class without any."""
    confusion = np.sum([judged["accuracy"]["confusion"] for judged in record["seen"].values()], axis=0)
    shares = zip(record["accuracy"]["per_class"], confusion.diagonal(), confusion.sum(1), strict=True)
    return {name: float(right / total) if total else None for name, right, total in shares}


def loss_settings(config: GeneralizationConfig) -> str:
    """The config's loss and its settings, those at their default too: `avh, scale 10.0`."""
    options = LOSSES[config.model.loss](**config.model.loss_options)
    return ", ".join([config.model.loss, *(f"{name.replace('_', ' ')} {value}" for name, value in options)])


def _facts(config: GeneralizationConfig, domains: SeenAndUnseen) -> list[tuple[str, str]]:
    """The config in the terms of a reader."""
    training, model = config.training, config.model
    seen = ", ".join(f"{seen.name} ({len(seen.training)} + {len(seen.validation)})" for seen in domains.seen)
    facts = [
        ("Data", f"{config.data.dataset or 'own images'}, {len(domains.classes)} classes"),
        ("Unseen", f"{domains.name}, {len(domains.unseen.images)} images, all for measuring alone"),
        ("Seen", f"{seen} images to train on + held out"),
        ("Model", f"{model.backbone}{' (frozen)' if training.frozen_backbone else ''}, head {model.head or 'none'}, "
                  f"input {config.transforms.size} px"),
        ("Method", config.method),
        ("Settings", method_settings(config)),
        ("Loss", loss_settings(config)),
        ("Steps", f"{training.steps} of {training.batch_size} images of each seen domain, a report every "
                  f"{training.interval}"),
        ("BatchNorm", "batch statistics" if training.batch_norm == "train" else "frozen running statistics"),
        ("Seed", str(config.seed)),
    ]  # fmt: skip
    return [(name, value) for name, value in facts if value]


def _cards(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures at the top."""
    cards = []
    for key, (title, note) in CHOICES.items():
        found = results[key]
        numbered = note if key == "final" else note.replace("the report", f"report {found['round']}", 1)
        cards.append({"title": title, "value": found["overall"], "class_mean": found["class_mean"], "note": numbered})
    return cards


def _notices(results: Mapping[str, Any]) -> list[str]:
    """What a reader should not overlook."""
    final, best = results["final"]["overall"], results["oracle_best"]
    if best["overall"] - final < NOTABLE_LOSS:
        return []
    lost = 100 * (best["overall"] - final)
    return [f"What came after report {best['round']} lost {lost:.1f} points of accuracy on the unseen domain (oracle)."]


def _curves(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The figures over the steps, each with a title and a sentence for those who do not see it."""
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
    """Accuracy by class on what was held out and on the unseen domain; of many classes those lowest on the latter."""
    held_out, unseen = seen_per_class(final), final["accuracy"]["per_class"]
    names, note = list(classes), ""
    if len(names) > MOST_BARS:
        kept = set(sorted(names, key=lambda name: (unseen[name] is None, unseen[name] or 0))[:MOST_BARS])
        names = [name for name in names if name in kept]
        note = f"The {MOST_BARS} of {len(classes)} classes that are lowest on the unseen domain; the table holds all."
    figure = figures.classes_figure({SEEN: held_out, UNSEEN: unseen}, names, "accuracy of the final model, %")
    description = "Accuracy by class on held-out images of the seen domains and on the unseen one, as the table has it."
    return {"svg": figures.to_svg(figure, "classes", description), "note": note}


def _hardness(final: Mapping[str, Any]) -> dict[str, Any]:
    seen, unseen = hardness_seen(final), final["hardness"]
    figure = figures.hardness_figure({"": {SEEN: seen["histogram"], UNSEEN: unseen["histogram"]}})
    description = f"Histograms of AVH: mean {seen['mean']:.3f} on held-out images, {unseen['mean']:.3f} on unseen ones."
    return {"svg": figures.to_svg(figure, "hardness", description), "seen": seen["mean"], "unseen": unseen["mean"]}


def render_summary(
    configs: Sequence[GeneralizationConfig], summary: Mapping[str, Any], links: Mapping[str, Mapping[str, str]]
) -> str:
    """The page of a study.

    Args:
        configs: what was run, a row each.
        summary: `uda.generalization.summary.summarise` of them.
        links: by config's name and unseen domain the address of the run's own page, relative to this one.
    """
    return template("generalization_summary.html").render(
        configs=configs,
        choices=CHOICES,
        targets=summary["targets"],
        rows=summary["rows"],
        missing=[
            f"{row['config']} has no finished run yet for: {', '.join(without)}; its average waits for them."
            for row in summary["rows"]
            if (without := [name for name in summary["targets"] if name not in row["folders"]])
        ],
        links=links,
        losses=[loss_settings(config) for config in configs],
        settings=[method_settings(config) for config in configs],
        panels=[
            (row["config"], _hardness_by_target(number, row))
            for number, row in enumerate(summary["rows"])
            if row["hardness"]
        ],
    )


def _hardness_by_target(number: int, row: Mapping[str, Any]) -> str:
    """The AVH histograms of a config's runs, a panel a target."""
    panels = {
        name: {SEEN: groups["seen"]["histogram"], UNSEEN: groups["unseen"]["histogram"]}
        for name, groups in row["hardness"].items()
    }
    means = "; ".join(
        f"{name} {groups['seen']['mean']:.3f} and {groups['unseen']['mean']:.3f}"
        for name, groups in row["hardness"].items()
    )
    description = f"Histograms of AVH by unseen domain; means of held-out images and of unseen ones: {means}."
    return figures.to_svg(figures.hardness_figure(panels), f"hardness-{number}", description)
