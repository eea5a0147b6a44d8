"""The page of several configs, each with every domain left out in turn."""

from collections.abc import Mapping, Sequence
from typing import Any

from uda.generalization.config import GeneralizationConfig
from uda.generalization.page import SEEN, UNSEEN, loss_settings
from uda.generalization.results import CHOICES
from uda.report import figures
from uda.report.html import method_settings_text, template


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
