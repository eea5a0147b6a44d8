"""The figures of scores and human selection frequency."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from uda.report.figures import COLOURS, FAINT, INK, MARKERS, legend_name, look_of, new_axes, styled
from uda.report.findings import Row

#: Labels of the axis of a score.
LABELS: Mapping[str, str] = {
    "avh": "AVH",
    "angle": "angle to the label's class, radians",
    "avc": "AVC of the label",
    "top_avc": "largest AVC",
    "confidence": "softmax of the label",
    "top_confidence": "largest softmax",
    "margin": "margin of the logits",
    "entropy": "entropy of the softmax, nats",
    "loss": "cross-entropy, nats",
    "norm": "norm of the feature",
}
FREQUENCY_LABEL = "human selection frequency"
COLUMNS = 20
#: Up to this many different frequencies, each has its own column.
FEW_LEVELS = 30


@dataclass(frozen=True)
class Point:
    """The mean score of a bin of frequencies."""

    frequency: float
    """Mean frequency of the bin."""
    mean: float
    low: float
    high: float
    """Interval of the mean."""


@dataclass(frozen=True)
class Panel:
    """A 2-D histogram with B bins of frequency and S bins of score."""

    model: str
    frequency_edges: np.ndarray
    """(B + 1,), from 0 to 1."""
    score_edges: np.ndarray
    """(S + 1,)."""
    counts: np.ndarray
    """(B, S), number of images. An image can be spread over several bins, so the numbers need not be whole."""
    means: Sequence[Point]

    def cells(self) -> Iterator[Row]:
        """The cells that are not empty."""
        for x, y in zip(*np.nonzero(self.counts), strict=True):
            yield {
                "model": self.model,
                "frequency_low": float(self.frequency_edges[x]), "frequency_high": float(self.frequency_edges[x + 1]),
                "score_low": float(self.score_edges[y]), "score_high": float(self.score_edges[y + 1]),
                "images": float(self.counts[x, y]),
            }  # fmt: skip


def frequency_columns(frequencies: np.ndarray, annotators: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Bins of frequency without stripes from whole numbers of votes.

    With m votes, only the frequencies k/m are possible. Some bins of equal width contain three of these frequencies,
    others two, which makes stripes. So an image with k of m votes is spread evenly over [k/(m+1), (k+1)/(m+1)]. Each
    bin gets the share of the image that is inside of it. If all m + 1 frequencies are equally common, all bins are
    then equal. If there are few different frequencies, each has its own bin. If there are many and the number of votes
    is not known, bins have equal width and images are not spread.

    Args:
        frequencies: (N,) in 0..1.
        annotators: number m of votes of each image, (N,); None: not known.

    Returns:
        Edges (B + 1,) from 0 to 1, and the share of each image in each bin, (N, B). The rows sum to 1.
    """
    levels = np.unique(frequencies)
    if len(levels) <= FEW_LEVELS:
        edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]])
        return edges, (frequencies[:, None] == levels).astype(float)
    edges = np.linspace(0, 1, COLUMNS + 1)
    if annotators is None:
        column = np.clip(np.ceil(frequencies * COLUMNS).astype(int) - 1, 0, COLUMNS - 1)
        return edges, (column[:, None] == np.arange(COLUMNS)).astype(float)
    low = (frequencies * annotators / (annotators + 1))[:, None]
    high = low + 1 / (annotators + 1)[:, None]
    inside = np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None)
    return edges, inside / inside.sum(1, keepdims=True)


@styled
def histogram_figure(panels: Sequence[Panel], score: str):
    """Numbers of images by frequency and score, and the mean score of each bin, one panel per model."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    size = (5, 3.4) if len(panels) == 1 else (0.9 + 3.1 * columns, 0.9 + 2.5 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    colours = LogNorm(0.3, max(1.0, *(panel.counts.max() for panel in panels)))
    for axes, panel in zip(grid, panels, strict=False):
        # Cells with less than a third of an image come from spreading an image over neighbouring columns.
        picture = axes.pcolormesh(
            panel.frequency_edges, panel.score_edges, np.ma.masked_less(panel.counts.T, 0.3), norm=colours, cmap="Blues"
        )
        heights = np.array([point.mean for point in panel.means])
        reach = [[point.mean - point.low for point in panel.means], [point.high - point.mean for point in panel.means]]
        axes.errorbar(
            [point.frequency for point in panel.means], heights, yerr=reach, color=COLOURS[1], marker=MARKERS[0],
            markersize=5, linewidth=1.6, elinewidth=1.6, capsize=4, label="mean, 95 % interval",
        )  # fmt: skip
        axes.set_xlim(0, 1)
        if len(panels) > 1:
            axes.set_title(panel.model, fontsize=10)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[max(len(panels) - columns, 0) : len(panels)]:  # the lowest panel of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel(FREQUENCY_LABEL, fontsize=11)
    figure.supylabel(LABELS.get(score, score), fontsize=11)
    ticks = [10**power for power in range(6) if 10**power <= colours.vmax]
    bar = figure.colorbar(picture, ax=list(grid), label="images", shrink=0.85, ticks=ticks, format="%g")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", frameon=False, fontsize=10)
    return figure


@styled
def summary_figure(rows: Sequence[Row]):
    """rho of every score with its bootstrap interval, one marker per model. Scores are sorted by their mean rho."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    mean: dict[str, list[float]] = {}
    for row in rows:
        mean.setdefault(row["score"], []).append(row["rho"])
    scores = sorted(mean, key=lambda name: -float(np.mean(mean[name])))
    place = {name: number for number, name in enumerate(scores)}
    step = 0.7 / len(models)
    axes = new_axes(6, 1.2 + (0.22 + 0.12 * len(models)) * len(scores))
    for number, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        axes.errorbar(
            [row["rho"] for row in own],
            [place[row["score"]] + (number - (len(models) - 1) / 2) * step for row in own],
            # At least 0, because rounding can put a rho of 1 outside of its interval.
            xerr=[
                [max(row["rho"] - row["bootstrap_low"], 0) for row in own],
                [max(row["bootstrap_high"] - row["rho"], 0) for row in own],
            ],
            markersize=5, elinewidth=1.6, capsize=3, label=legend_name(model),
            **look_of(number) | {"linestyle": "none"},
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(scores)), scores)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel("Spearman's rho with human selection frequency\n(the paper expects values above 0)")
    axes.set_ylabel("score")
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    beside = int(np.clip(60 // (max(map(len, models)) + 6), 1, 3))  # about 60 letters fit into six inches
    axes.figure.legend(loc="outside upper left", ncols=beside, frameon=False, fontsize=10)
    return axes.figure
