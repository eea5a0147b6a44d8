"""The figures of image degradation."""

from collections.abc import Sequence

import numpy as np

from uda.hardness.probes.degradations import DEGRADATIONS
from uda.report.figures import COLOURS, FAINT, INK, legend_name, look_of, styled
from uda.report.findings import Findings, Row

#: Quantity, the axis it goes on, and what it is for the page.
CURVES = {
    "avh_k": ("mean AVH, in units of 1 / K", "AVH"),
    "accuracy": ("accuracy, %", "Accuracy"),
    "confidence": ("mean softmax of the label, p_y", "Model confidence in the label"),
    "top_confidence": ("mean of the largest softmax", "Model confidence in what it says"),
    "entropy": ("mean entropy, nats", "Entropy"),
    "norm": ("mean |x|", "Norm of the feature"),
}
LEVEL = "level of degradation (0: the image itself, 1: the most)"


@styled
def curves_figure(rows: Sequence[Row], quantity: str):
    """One quantity's mean against the level, a panel a kind, a line and its 95 % band a model; shares in per cent."""
    from matplotlib.figure import Figure

    kinds = _kinds(rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    scale = 100 if quantity == "accuracy" else 1
    columns = min(len(kinds), 3)
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(1.2 + 2.6 * columns, 0.9 + 2.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, kind in zip(grid, kinds, strict=False):
        for index, model in enumerate(models):
            own = [
                row for row in rows
                if (row["degradation"], row["model"], row["quantity"]) == (kind, model, quantity)
            ]  # fmt: skip
            levels = [row["level"] for row in own]
            mean, low, high = (scale * np.array([row[key] for row in own]) for key in ("mean", "low", "high"))
            look = look_of(index)
            axes.plot(levels, mean, label=legend_name(model), markersize=4.5, linewidth=1.7, **look)
            axes.fill_between(levels, low, high, color=look["color"], alpha=0.2, linewidth=0)
        axes.set_title(kind, fontsize=11)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
    for axes in grid[len(kinds) :]:
        axes.set_axis_off()
    for axes in grid[max(len(kinds) - columns, 0) : len(kinds)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel(LEVEL if columns > 1 else "level of degradation", fontsize=11)
    figure.supylabel(CURVES[quantity][0], fontsize=11)
    if len(models) > 1:
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper left", ncols=min(len(models), 3), frameon=False, fontsize=10)
    return figure


@styled
def examples_figure(looks: np.ndarray, rows: Sequence[Row]):
    """One image, a row of pictures a kind and a column a level, with AVH, p_y and a wrong answer below each.

    Args:
        looks: (kinds, L, S, S, C) in 0..1.
        rows: in the same order, kind by kind.
    """
    from matplotlib.figure import Figure

    kinds, levels = looks.shape[:2]
    figure = Figure(figsize=(0.4 + 1.35 * levels, 0.3 + 1.95 * kinds), layout="constrained")
    grid = figure.subplots(kinds, levels, squeeze=False)
    for axes, look, row in zip(grid.ravel(), looks.reshape(-1, *looks.shape[2:]), rows, strict=True):
        axes.imshow(look.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        wrong = row["predicted"] != row["label"]
        lines = [f"AVH {row['avh_k']:.2f} / K", f"p_y {row['confidence']:.3f}"]
        lines.append(f"says {_short(row['predicted'])}" if wrong else "right")
        axes.set_xlabel("\n".join(lines), fontsize=9, color=COLOURS[1] if wrong else INK)
        for spine in axes.spines.values():
            spine.set_visible(wrong)
            spine.set_color(COLOURS[1])
    for axes, row in zip(grid[:, 0], rows[::levels], strict=True):
        axes.set_ylabel(row["degradation"])
    for axes, row in zip(grid[0], rows, strict=False):
        axes.set_title(f"level {row['level']:.2g}", fontsize=10)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"


def _kinds(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["degradation"] for row in rows))


def add_curves(findings: Findings, curves: Sequence[Row], name: str) -> None:
    """A section with a figure a quantity."""
    lines = dict(DEGRADATIONS.describe())
    what = " ".join(f"{kind}: {lines[kind] or 'a kind of its own.'}" for kind in _kinds(curves))
    findings.section(
        "Image degradation",
        "Each image is degraded as the network sees it, after resize and crop and before normalisation; pixels run "
        f"from 0 to 1. {what} A network with a larger input can average more noise away. Bands: 95 % intervals of the "
        "mean over the images.",
    )
    for quantity, (axis, title) in CURVES.items():
        findings.figure(
            f"{name}_{quantity.removesuffix('_k')}",
            curves_figure(curves, quantity),
            f"{title} under degradation",
            f"The {axis.removesuffix(', %')}, over the levels of each kind of degradation.",
            [row for row in curves if row["quantity"] == quantity],
        )


def add_examples(findings: Findings, looks: np.ndarray, rows: Sequence[Row], name: str) -> None:
    """One image at all levels of all kinds."""
    first = rows[0]
    findings.figure(
        name,
        examples_figure(looks, rows),
        f"One image at all levels, seen by {first['model']}",
        f"{first['image']}, a {first['label']}: among the images that are classified rightly as they are the one of "
        "median AVH. Below each the AVH in units of 1 / K, the softmax of the label, and what the classifier says.",
        rows,
        raster=True,
    )


def add_tables(findings: Findings, curves: Sequence[Row], order: Sequence[Row], name: str) -> None:
    """Who keeps the order of the levels, and all means: a row a model, a kind and a level."""
    findings.table(
        f"{name}_order",
        "Which score follows the degradation of each image",
        order,
        "Each score is turned so that larger is harder. spearman: rank correlation of level and score, image by image, "
        "averaged (an image whose score never moves counts 0); less_confidence: how much larger it is than that of "
        "confidence, paired by image. harder_at_every_level: share of the images whose score says harder at each level "
        "than at the one before. With 95 % intervals (normal; Wilson's).",
    )
    means: dict[tuple, dict] = {}
    for row in curves:
        where = {key: row[key] for key in ("model", "degradation", "level")}
        means.setdefault(tuple(where.values()), where)[row["quantity"]] = row["mean"]
    findings.table(
        f"{name}_means",
        "All means",
        list(means.values()),
        "Over the images; accuracy as a share, avh_k in units of 1 / K. The intervals stand in the figures' data.",
    )
