"""The figures of image degradation."""

from collections.abc import Sequence

import numpy as np

from uda.hardness.probes.degradations import DEGRADATIONS
from uda.report.figures import COLOURS, FAINT, INK, legend_name, look_of, styled
from uda.report.findings import Findings, Row

#: For each quantity, the label of its axis and its title on the page.
CURVES = {
    "avh_k": ("mean AVH, in units of 1 / K", "AVH"),
    "accuracy": ("accuracy, %", "Accuracy"),
    "confidence": ("mean softmax of the label, p_y", "Model confidence in the label"),
    "top_confidence": ("mean of the largest softmax", "Model confidence in its prediction"),
    "entropy": ("mean entropy, nats", "Entropy"),
    "norm": ("mean |x|", "Norm of the feature"),
}
LEVEL = "level of degradation (0: the image itself, 1: the strongest)"


@styled
def curves_figure(rows: Sequence[Row], quantity: str):
    """One quantity's mean over the levels: one panel per degradation, one line with a 95 % band per model.

    Accuracy is in per cent.
    """
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
    """One image, one row per degradation and one column per level, with AVH, p_y and wrong predictions.

    Args:
        looks: pixels, (kinds, L, S, S, C) in 0..1.
        rows: the rows of `example_rows`, in the same order.
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
        lines.append(f"predicted {_short(row['predicted'])}" if wrong else "right")
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
    """Add a section with one figure per quantity."""
    lines = dict(DEGRADATIONS.describe())
    what = " ".join(f"{kind}: {lines[kind] or 'a degradation without a description.'}" for kind in _kinds(curves))
    findings.section(
        "Image degradation",
        "Each image is degraded after resize and crop and before normalisation. Pixels are from 0 to 1. "
        f"{what} A network with a larger input can average out more noise. Bands are 95 % intervals of the mean over "
        "the images.",
    )
    for quantity, (axis, title) in CURVES.items():
        findings.figure(
            f"{name}_{quantity.removesuffix('_k')}",
            curves_figure(curves, quantity),
            f"{title} under degradation",
            f"The {axis.removesuffix(', %')}, over the levels of each degradation.",
            [row for row in curves if row["quantity"] == quantity],
        )


def add_examples(findings: Findings, looks: np.ndarray, rows: Sequence[Row], name: str) -> None:
    """Add the figure of one image at all levels of all degradations."""
    first = rows[0]
    findings.figure(
        name,
        examples_figure(looks, rows),
        f"One image at all levels, seen by {first['model']}",
        f"{first['image']}, class {first['label']}: the image of median AVH among those that are classified correctly "
        "at level 0. Below each picture: AVH in units of 1 / K, the softmax of the label, and the prediction.",
        rows,
        raster=True,
    )


def add_tables(findings: Findings, curves: Sequence[Row], order: Sequence[Row], name: str) -> None:
    """Add the table of how well scores keep the order of the levels, and the table of all means."""
    findings.table(
        f"{name}_order",
        "Which score follows the degradation of each image",
        order,
        "The sign of each score is chosen so that larger means harder. spearman: rank correlation of level and score "
        "for each image, averaged (0 for an image with a constant score). less_confidence: spearman minus that of "
        "confidence, paired by image. harder_at_every_level: share of images whose score gets harder from each level "
        "to the next. Intervals are 95 % (normal; Wilson's for shares).",
    )
    means: dict[tuple, dict] = {}
    for row in curves:
        where = {key: row[key] for key in ("model", "degradation", "level")}
        means.setdefault(tuple(where.values()), where)[row["quantity"]] = row["mean"]
    findings.table(
        f"{name}_means",
        "All means",
        list(means.values()),
        "Means over the images. Accuracy is a share, avh_k is in units of 1 / K. The data of the figures have the "
        "intervals.",
    )
