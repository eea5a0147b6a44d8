"""The page of several configs, each with every domain left out in turn."""

from collections.abc import Mapping, Sequence
from typing import Any

from uda.generalization.config import GeneralizationConfig
from uda.generalization.page import SEEN, UNSEEN, loss_settings, network_text, short_domains
from uda.generalization.results import CHOICES
from uda.report import figures
from uda.report.html import clean_name, method_settings_text, template
from uda.report.page import Card
from uda.report.terminal import percent


def render_summary(
    configs: Sequence[GeneralizationConfig], summary: Mapping[str, Any], links: Mapping[str, Mapping[str, str]]
) -> str:
    """The summary page of several configs.

    Args:
        configs: the configs, one per row.
        summary: the result of `uda.generalization.summary.summarise_runs` for these configs.
        links: addresses of the runs' pages relative to this page, by the config's name and the unseen domain.
    """
    rows, names = summary["rows"], short_domains(summary["targets"])
    return template("generalization_summary.html").render(
        configs=configs,
        choices=CHOICES,
        targets=summary["targets"],
        names=names,
        rows=rows,
        averages=[_card(row, len(names), len(rows) == 1) for row in rows],
        missing=[
            f"{row['config']} has no finished run yet for: {', '.join(without)}. Its average needs these runs."
            for row in rows
            if (without := [name for name in summary["targets"] if name not in row["folders"]])
        ],
        links=links,
        panels=[
            (row["config"], _hardness_by_target(number, row, names))
            for number, row in enumerate(rows)
            if row["hardness"]
        ],
        facts=[(config.name, _in_words(config)) for config in configs],
    )


def _card(row: Mapping[str, Any], domains: int, main: bool) -> Card:
    """The averages of a config."""
    note = f"final accuracy, average of {domains} unseen domains; validation choice "
    note += f"{percent(row['validation_choice']['average'])}, oracle best {percent(row['oracle_best']['average'])}"
    average = row["final"]["average"]
    value = "-" if average is None else f"{percent(average)} %"
    return Card(clean_name(row["config"]), value, note, oracle=True, main=main)


def _in_words(config: GeneralizationConfig) -> str:
    """What a config trains."""
    training, own = config.training, method_settings_text(config)
    return " · ".join(
        [
            f"{config.method} ({own})" if own else config.method,
            f"loss {loss_settings(config)}",
            network_text(config),
            f"{training.steps:,} steps of {training.batch_size} images of each seen domain",
            f"seed {config.seed}",
        ]
    )


def _hardness_by_target(number: int, row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The AVH histograms of a config's runs, one panel per unseen domain."""
    panels = {
        names[name]: {SEEN: groups["seen"]["histogram"], UNSEEN: groups["unseen"]["histogram"]}
        for name, groups in row["hardness"].items()
    }
    means = "; ".join(
        f"{names[name]} {groups['seen']['mean']:.3f} and {groups['unseen']['mean']:.3f}"
        for name, groups in row["hardness"].items()
    )
    description = f"Histograms of AVH by unseen domain; means of held-out images and of the unseen domain: {means}."
    return figures.to_svg(figures.hardness_figure(panels), f"hardness-{number}", description)
