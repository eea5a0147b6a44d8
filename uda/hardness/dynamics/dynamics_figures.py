"""The figures of the dynamics: curves over epochs by group of images and by run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from uda.report.figures import COLOURS, FAINT, MARKERS, legend_name, look_of, styled

Rows = Sequence[dict[str, Any]]


def _panels(count: int, ylabel: str, width: float = 3.1, height: float = 2.7, sharey: bool = True):
    """A figure with panels side by side, at most four in a row."""
    from matplotlib.figure import Figure

    lines = -(-count // 4)
    columns = -(-count // lines)
    size = (0.9 + max(width * columns, 4.1), 0.7 + height * lines)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=sharey, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    for axes in grid[max(count - columns, 0) : count]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("epoch")
    for axes in grid[:count:columns]:
        axes.set_ylabel(ylabel)
    return figure, grid[:count]


def _epochs(axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)


def _legend(figure, axes, columns: int) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, frameon=False, fontsize=9)


@styled
def groups_figure(rows: Rows, runs: Sequence[str], ylabel: str, sharey: bool = True):
    """One panel per run, one line per group from hard (dark) to easy (bright), with 95 % bands."""
    import matplotlib

    groups = list(dict.fromkeys(row["group"] for row in rows))
    inner = [group for group in groups if group != "all"]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, max(len(inner), 1)))
    looks = {group: (shades[i], MARKERS[i % len(MARKERS)], "-") for i, group in enumerate(inner)}
    looks["all"] = ("#22262c", "", (0, (1, 1.2)))
    figure, panels = _panels(len(runs), ylabel, sharey=sharey)
    for axes, run in zip(panels, runs, strict=True):
        for group in groups:
            own = [row for row in rows if row["run"] == run and row["group"] == group]
            colour, marker, dash = looks[group]
            epochs, means = [row["epoch"] for row in own], [row["mean"] for row in own]
            label = f"HSF {group}, {own[0]['images']:,} images" if group != "all" else "all images"
            axes.plot(
                epochs, means, color=colour, marker=marker, linestyle=dash, markersize=3.5, linewidth=1.5, label=label
            )
            low, high = ([row[key] for row in own] for key in ("low", "high"))
            if None not in low:
                axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(run, fontsize=10)
        _epochs(axes)
    _legend(figure, panels[0], 2 if len(runs) == 1 else 3)
    return figure


def _run_line(axes, run: int, epochs, values, label: str) -> None:
    axes.plot(epochs, values, label=legend_name(label), markersize=4, linewidth=1.6, **look_of(run))


@styled
def models_figure(rows: Rows, runs: Sequence[str]):
    """Mean AVH and accuracy of all images, one line per run."""
    figure, panels = _panels(2, "", width=3.6, sharey=False)
    for axes, (name, label) in zip(panels, (("avh", "mean AVH, in 1 / K"), ("accuracy", "accuracy, %")), strict=True):
        for number, run in enumerate(runs):
            own = [row for row in rows if row["run"] == run and row["quantity"] == name]
            _run_line(axes, number, [row["epoch"] for row in own], [row["mean"] for row in own], run)
        axes.set_ylabel(label)
        _epochs(axes)
    _legend(figure, panels[0], 3)
    return figure


@styled
def correlations_figure(rows: Rows, runs: Sequence[str]):
    """Spearman's rho with human frequency after each epoch: one panel per score, one line per run, 95 % bands."""
    scores = list(dict.fromkeys(row["score"] for row in rows))
    figure, panels = _panels(len(scores), "Spearman's rho with HSF")
    for axes, score in zip(panels, scores, strict=True):
        for number, run in enumerate(runs):
            own = [row for row in rows if row["run"] == run and row["score"] == score]
            epochs = [row["epoch"] for row in own]
            _run_line(axes, number, epochs, [row["rho"] for row in own], run)
            low, high = ([row[key] for row in own] for key in ("low", "high"))
            axes.fill_between(epochs, low, high, color=COLOURS[number % len(COLOURS)], alpha=0.15, linewidth=0)
        axes.axhline(0, color="#8a9099", linewidth=1)
        axes.set_title({"avh": "AVH (turned)", "norm": "norm of x"}.get(score, score), fontsize=10)
        _epochs(axes)
    _legend(figure, panels[0], 3)
    return figure


@styled
def plateaus_figure(rows: Rows, runs: Sequence[str]):
    """Plateau epochs with their intervals: one row per run, one marker per quantity."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    quantities = list(dict.fromkeys(row["quantity"] for row in rows))
    figure = Figure(figsize=(6, 1.3 + 0.55 * len(runs)), layout="constrained")
    axes = figure.subplots()
    offsets = np.linspace(-0.22, 0.22, len(quantities))
    for number, (quantity, offset) in enumerate(zip(quantities, offsets, strict=True)):
        own = [next(row for row in rows if row["run"] == run and row["quantity"] == quantity) for run in runs]
        found = np.array([row["plateau epoch"] for row in own], dtype=float)
        reach = np.array([[row["plateau epoch"] - row["low"], row["high"] - row["plateau epoch"]] for row in own]).T
        axes.errorbar(
            found, np.arange(len(runs)) + offset, xerr=reach.clip(min=0), label={"avh": "AVH"}.get(quantity, quantity),
            color=COLOURS[number], marker=MARKERS[number], linestyle="none", markersize=6, capsize=3,
        )  # fmt: skip
    axes.set_yticks(range(len(runs)), runs)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("plateau epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    _legend(figure, axes, 3)
    return figure
