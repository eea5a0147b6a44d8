"""The figure of the toy: two-dimensional features by class, by AVH and by norm."""

from collections.abc import Sequence

import numpy as np

from uda.report.figures import COLOURS, FAINT, INK, styled
from uda.report.findings import Findings, Row

TEN_COLOURS = (*COLOURS, "#882255", "#44AA99", "#999933")


@styled
def embedding_figure(points: Sequence[Row], weights: Sequence[Row], boundaries: Sequence[float]):
    """Features x = (x1, x2) three times: coloured by class, by AVH in units of 1 / K, and by norm.

    Args:
        points: rows with x1, x2, label, avh, norm.
        weights: rows with class and direction. The directions are drawn as named rays.
        boundaries: directions of the class boundaries in radians, drawn as thin lines.
    """
    from matplotlib.figure import Figure

    x = np.array([[row["x1"], row["x2"]] for row in points])
    reach = 1.08 * float(np.abs(x).max())
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    # In the order of directions, so that neighbours differ even with more classes than colours.
    order = [row["class"] for row in sorted(weights, key=lambda row: row["direction"])]
    labels = np.array([row["label"] for row in points])
    look = {"s": 4, "linewidths": 0, "rasterized": True}
    for place, name in enumerate(order):
        own = labels == name
        panels[0].scatter(*x[own].T, color=TEN_COLOURS[place % len(TEN_COLOURS)], label=f"class {name}", **look)
    for axes, key, scale, title in (
        (panels[1], "avh", len(weights), "AVH, in units of 1 / K"),
        (panels[2], "norm", 1, "norm |x|"),
    ):
        values = scale * np.array([row[key] for row in points])
        top = float(np.quantile(values, 0.99))  # otherwise a few misclassified images would use most of the colours
        cloud = axes.scatter(*x.T, c=values, cmap="cividis", vmin=values.min(), vmax=top, **look)
        figure.colorbar(cloud, ax=axes, label=title, shrink=0.85, extend="max")
        axes.set_title(f"by {title.split(',')[0]}")
    panels[0].set_title("by class")
    for axes in panels:
        for direction in boundaries:
            end = 1.5 * reach * np.array([np.cos(direction), np.sin(direction)])
            axes.plot([0, end[0]], [0, end[1]], color=FAINT, linewidth=0.8, zorder=0)
        axes.set_aspect("equal")
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_xlabel("x1")
    panels[0].set_ylabel("x2")
    for row in weights:
        arrow = reach * np.array([np.cos(row["direction"]), np.sin(row["direction"])])
        colour = TEN_COLOURS[order.index(row["class"]) % len(TEN_COLOURS)]
        panels[0].plot([0, 0.9 * arrow[0]], [0, 0.9 * arrow[1]], color=INK, linewidth=0.8)
        box = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": colour}
        panels[0].text(*(0.94 * arrow), row["class"], fontsize=9, ha="center", va="center", bbox=box)
    return figure


def add_toy(
    findings: Findings,
    points: Sequence[Row],
    weights: Sequence[Row],
    boundaries: Sequence[float],
    correlations: Sequence[Row],
    reached: Sequence[Row],
    name: str,
) -> None:
    """Add the section of the toy: the figure with its raw data, and the tables."""
    findings.section(
        "Digits in the plane",
        "A small convolutional network is trained on MNIST digits by softmax cross-entropy. Its feature x has two "
        "entries (a linear layer, no ReLU). Its classifier has no bias. "
        + "; ".join(f"{row['count']:,} images {row['images']}: {100 * row['accuracy']:.2f} % right" for row in reached)
        + ".",
    )
    findings.figure(
        f"{name}_embedding",
        embedding_figure(points, weights, boundaries),
        "Features by class, by AVH and by norm",
        "Each point is an image. Dark rays with a class name are the directions of the class weights. Faint rays are "
        "the class boundaries, where the two largest logits are equal. Colours end at the 99th percentile. The data "
        "have all points.",
        points,
        raster=True,
    )
    findings.table(
        f"{name}_correlations",
        "Correlation of scores with the angle to the nearest class boundary",
        correlations,
        "spearman: rank correlation of a score with the angle between x and the nearest class boundary, with a 95 % "
        "interval (Fisher's z). The angle is below 0 for a wrongly classified image. by_class: mean over the classes "
        "of the correlation within each class.",
    )
    findings.table(f"{name}_weights", "Class weights", weights, "Directions in radians.")
