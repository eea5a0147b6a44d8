"""The figures of reports. They do not use matplotlib's global state, and their colours suit colour-blind readers."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

# Okabe and Ito's palette. Each series also has its own marker and dash.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA3377", "#E69F00", "#56B4E9", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (9, 2)), (0, (3, 1)), (0, (6, 1, 1, 1, 1, 1)))
INK, FAINT = "#2b2f36", "#d9dde3"
P = ParamSpec("P")
T = TypeVar("T")

MOST_CLASSES = 40
MOST_ANNOTATED = 15

_STYLE = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a9099",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.color": "white",
    "svg.fonttype": "none",
    # The name of a user's class or run may be `$x$`.
    "text.parse_math": False,
}


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run `draw` with the style of the report, and restore the caller's settings afterwards."""

    @wraps(draw)
    def under_style(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return under_style


def look_of(number: int) -> dict[str, Any]:
    """Colour, marker and dash of a series, for `plot`. The first 49 series all look different."""
    place, other = number % len(COLOURS), (number + number // len(COLOURS)) % len(MARKERS)
    return {"color": COLOURS[place], "marker": MARKERS[other], "linestyle": DASHES[other]}


def legend_name(name: str) -> str:
    """Name of a series for the legend. Legends leave out names that begin with `_`, so these get a space before it."""
    return f" {name}" if name.startswith("_") else name


def new_axes(width: float, height: float):
    """New axes of `width` by `height` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


@styled
def curves_figure(
    rounds: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    ylabel: str,
    baseline: float | None = None,
    xlabel: str = "round",
):
    """One line per series over the rounds. `baseline`: value of the source model, drawn as a horizontal line."""
    axes = new_axes(5, 3.1)
    for index, (name, values) in enumerate(series.items()):
        heights = [np.nan if value is None else value for value in values]
        axes.plot(rounds, heights, label=legend_name(name), markersize=5, linewidth=1.8, **look_of(index))
    if baseline is not None:
        axes.axhline(baseline, color=COLOURS[0], linewidth=1, linestyle=(0, (2, 3)))
        axes.annotate(
            f"source {baseline:.1f}", (1, baseline), xycoords=("axes fraction", "data"), fontsize=9,
            ha="right", va="bottom", color=COLOURS[0],
        )  # fmt: skip
    finish(axes, ylabel, legend=len(series) > 1, xlabel=xlabel)
    return axes.figure


@styled
def counts_figure(rounds: Sequence[int], both: Sequence[int], only_selector: Sequence[int], selector: str):
    """Stacked bars of the selected images: those that softmax selects too, and those that it does not."""
    axes = new_axes(5, 3.1)
    axes.bar(rounds, both, 0.7, color=COLOURS[0], label="softmax too")
    axes.bar(rounds, only_selector, 0.7, bottom=both, color=COLOURS[1], hatch="///", label=f"{selector} only")
    axes.set_ylim(0, 1.05 * max([1, *(a + b for a, b in zip(both, only_selector, strict=True))]))
    finish(axes, "selected images", legend=True)
    return axes.figure


@styled
def classes_figure(
    models: Mapping[str, Mapping[str, float | None]], names: Sequence[str], xlabel: str = "accuracy, % (oracle)"
):
    """Bars of the accuracy in per cent, one per name and model. The first of two models is paler."""
    axes = new_axes(6, 1.0 + 0.4 * len(names))
    positions = np.arange(len(names))
    looks = [(-0.2, "#9aa5b1", "///"), (0.2, COLOURS[0], None)] if len(models) > 1 else [(0, COLOURS[0], None)]
    for (title, accuracy), (offset, colour, hatch) in zip(models.items(), looks, strict=True):
        shares = [100 * (accuracy.get(name) or 0) for name in names]
        bars = axes.barh(positions + offset, shares, 0.38, color=colour, hatch=hatch, label=title)
        labels = ["no labels" if accuracy.get(name) is None else f"{100 * accuracy[name]:.1f}" for name in names]
        axes.bar_label(bars, labels, padding=3, fontsize=9)
    axes.set_yticks(positions, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=10)
    return axes.figure


@styled
def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]):
    """The confusion matrix in per cent of each true class."""
    counts = np.asarray(confusion, dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.4 * len(classes), 4, 8))
    axes = new_axes(side, side * 0.92)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    if len(classes) <= MOST_CLASSES:
        positions = range(len(classes))
        slanted = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(positions, classes, **(slanted if max(map(len, classes)) > 3 else {}))
        axes.set_yticks(positions, classes)
    if len(classes) <= MOST_ANNOTATED:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                colour = "white" if share > 55 else INK
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class (oracle)")
    axes.figure.colorbar(picture, ax=axes, label="% of the true class", shrink=0.75)
    return axes.figure


@styled
def hardness_figure(panels: Mapping[str, Mapping[str, Sequence[int]]]):
    """Histograms of AVH, one panel per title: the share of each group's images in equal bins from 0 to 2 / K.

    The first group is a grey area, the second a line. The x axis leaves out bins that are empty in all panels.
    """
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 4)
    columns = -(-len(panels) // rows)
    size = (5, 3.1) if len(panels) == 1 else (0.5 + 2.7 * columns, 0.8 + 2.1 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    looks = ({"fill": True, "color": "#c3cad2"}, {"color": COLOURS[1], "linewidth": 1.8})
    occupied = np.flatnonzero(np.sum([counts for groups in panels.values() for counts in groups.values()], axis=0))
    for axes, (title, groups) in zip(grid, panels.items(), strict=False):
        for (name, counts), look in zip(groups.items(), looks, strict=True):
            edges = np.linspace(0, 2, len(counts) + 1)
            axes.stairs(100 * np.asarray(counts) / max(sum(counts), 1), edges, label=name, **look)
        if len(panels) > 1:
            axes.set_title(title, fontsize=10)
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
        axes.set_xlim(edges[occupied[0]], edges[occupied[-1] + 1])
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[max(len(panels) - columns, 0) : len(panels)]:  # no panel is below these
        axes.tick_params(labelbottom=True)
    figure.supxlabel("AVH, in units of 1 / K", fontsize=11)
    figure.supylabel("% of the images", fontsize=11)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize=10)
    return figure


@styled
def to_svg(figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element for HTML, without external references. Its ids begin with `name`."""
    import matplotlib
    from markupsafe import escape

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text, and its fonts have letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    box = re.search(r'viewBox="[^"]*"', text)[0]
    title = escape(description)
    return re.sub(r"<svg[^>]*>", lambda _: f'<svg {box} role="img" aria-label="{title}">', text, count=1)


@styled
def to_rgb(figure, dpi: int = 100) -> np.ndarray:
    """The figure as pixels: (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def finish(axes, ylabel: str, legend: bool, xlabel: str = "round") -> None:
    """Add labels, whole numbers on the x axis, a grid, and a legend above."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    if legend:
        axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=10)
