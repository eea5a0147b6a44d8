"""The figures of reports. They do not use matplotlib's global state, and their colours suit colour-blind readers."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
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


def quick_axes(width: float, height: float):
    """New axes with margins for labels of usual length. They are drawn faster than `new_axes`, which measures them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(0.66 / width, 0.52 / height, 1 - 0.12 / width, 1 - 0.34 / height)
    return figure.subplots()


@styled
def curves_figure(
    rounds: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    ylabel: str,
    baselines: Sequence[tuple[str, float]] = (),
    xlabel: str = "round",
):
    """One line per series over the rounds. `baselines`: names and values of horizontal lines, such as the source's."""
    # Fixed margins save most of the time of drawing. They have room for one row of short names.
    fits = len(series) <= 3 and sum(map(len, series)) <= 30
    axes = quick_axes(5, 3.1) if fits else new_axes(5, 3.1)
    for index, (name, values) in enumerate(series.items()):
        heights = [np.nan if value is None else value for value in values]
        axes.plot(rounds, heights, label=legend_name(name), markersize=5, linewidth=1.8, **look_of(index))
    for index, (name, value) in enumerate(reversed(baselines)):
        end, side = ((1, "right"), (0, "left"))[index % 2]  # names of equal values do not lie over one another
        axes.axhline(value, color=COLOURS[0], linewidth=1, linestyle=(0, (2 - index % 2, 3)))
        axes.annotate(
            f"{name} {value:.1f}", (end, value), xycoords=("axes fraction", "data"), fontsize=9,
            ha=side, va="bottom", color=COLOURS[0],
        )  # fmt: skip
    finish(axes, ylabel, legend=len(series) > 1, xlabel=xlabel)
    return axes.figure


@styled
def compared_figure(
    x: Sequence[float],
    lines: Mapping[str, tuple[Sequence[float | None], Sequence[Sequence[float | None]]]],
    ylabel: str,
    xlabel: str,
    joined: bool = False,
):
    """Curves over one another: for each name its mean, and the single runs that it is the mean of, which are pale.

    `joined`: lines go on over places without a value, as where runs report after different numbers of steps.
    """
    axes = new_axes(5, 3.4)

    def points(values: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
        heights = np.array([np.nan if value is None else value for value in values], float)
        kept = ~np.isnan(heights) if joined else np.ones(len(heights), bool)
        return np.asarray(x, float)[kept], heights[kept]

    for index, (name, (mean, runs)) in enumerate(lines.items()):
        look = look_of(index)
        for values in runs:
            axes.plot(*points(values), color=look["color"], linewidth=0.9, alpha=0.35)
        axes.plot(*points(mean), label=legend_name(name), markersize=5, linewidth=1.8, **look)
    longest = max(map(len, lines), default=1)
    finish(axes, ylabel, legend=True, xlabel=xlabel, columns=2 if longest > 12 else 4)
    return axes.figure


@styled
def estimates_figure(rows: Mapping[str, tuple[float, tuple[float, float] | None, Sequence[float]]], xlabel: str):
    """A line per name, from top to bottom: mean, interval, and the single values below it."""
    axes = new_axes(6, 0.9 + 0.42 * len(rows))
    for place, (mean, interval, values) in enumerate(rows.values()):
        colour = look_of(place)["color"]
        if interval is not None:
            axes.plot(interval, (place, place), color=colour, linewidth=2.2, solid_capstyle="butt")
        if len(values) > 1:
            axes.scatter(values, [place + 0.22] * len(values), 12, facecolors="none", edgecolors=colour, linewidths=0.9)
        axes.plot(mean, place, color=colour, markersize=8, marker=look_of(place)["marker"])
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.margins(x=0.06)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    return axes.figure


@styled
def bars_figure(models: Mapping[str, Mapping[str, float | None]], names: Sequence[str], xlabel: str):
    """Horizontal bars of shares in per cent: for each name one bar per series. Unknown shares have no bar."""
    height = 0.9 / len(models)
    axes = new_axes(6, 0.9 + (0.16 + 0.13 * len(models)) * len(names))
    positions, largest = np.arange(len(names)), 1.0
    for place, (title, values) in enumerate(models.items()):
        shares = [100 * (values.get(name) or 0) for name in names]
        offset = (place - (len(models) - 1) / 2) * height
        colour = "#9aa5b1" if place == 0 and len(models) > 1 else COLOURS[max(place - 1, 0)]
        hatch = (None, None, "///")[place] if len(models) < 4 else None
        bars = axes.barh(positions + offset, shares, 0.85 * height, color=colour, hatch=hatch, label=title)
        labels = ["" if values.get(name) is None else f"{100 * values[name]:.1f}" for name in names]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
        largest = max(largest, *shares)
    axes.set_yticks(positions, names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.12 * largest)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=10)
    return axes.figure


@styled
def reliability_figure(models: Mapping[str, Sequence[tuple[float, float, int]]]):
    """Reliability diagram: accuracy against mean confidence, one line per model.

    Args:
        models: for each model its bins with images: mean confidence, accuracy (both 0..1), number of images.
    """
    axes = quick_axes(5, 3.1)
    axes.plot([0, 100], [0, 100], color="#8a9099", linewidth=1, linestyle=(0, (2, 3)))
    for place, (title, bins) in enumerate(models.items()):
        confidence, right, count = (np.array(values, float) for values in zip(*bins, strict=True))
        look = look_of(place)
        axes.plot(100 * confidence, 100 * right, label=legend_name(title), linewidth=1.5, **(look | {"marker": ""}))
        axes.scatter(
            100 * confidence, 100 * right, 12 + 120 * count / count.sum(), color=look["color"], marker=look["marker"]
        )
    axes.set_xlim(0, 101)
    axes.set_ylim(0, 103)
    finish(axes, "% right (oracle)", legend=True, xlabel="mean confidence, %")
    return axes.figure


@styled
def risk_figure(series: Mapping[str, tuple[np.ndarray, np.ndarray]]):
    """Risk-coverage curves: share of wrong predictions among the surest images, by their share of all images."""
    axes = quick_axes(5, 3.1)
    for place, (title, (coverage, risk)) in enumerate(series.items()):
        look = look_of(place) | {"marker": ""}
        axes.plot(100 * coverage, 100 * risk, label=legend_name(title), linewidth=1.8, **look)
    axes.set_xlim(0, 101)
    axes.set_ylim(bottom=0)
    finish(axes, "% wrong (oracle)", legend=True, xlabel="% of the images, surest first")
    return axes.figure


@styled
def map_figure(groups: Mapping[str, np.ndarray]):
    """Points (N, 2) of each group on a plane, without axes. The first group has rings."""
    axes = quick_axes(6, 4)
    for place, (title, points) in enumerate(groups.items()):
        look = {"facecolors": "none", "edgecolors": "#8a9099"} if place == 0 else {"color": COLOURS[place - 1]}
        axes.scatter(points[:, 0], points[:, 1], 5, label=title, linewidths=0.6, alpha=0.6, **look)
    axes.set_axis_off()
    axes.figure.subplots_adjust(0, 0, 1, 0.92)
    axes.figure.legend(loc="upper left", ncols=3, frameon=False, fontsize=10, labelcolor="#8a9099")
    return axes.figure


@styled
def to_png(figure, dpi: int = 90) -> bytes:
    """The figure as a PNG with a transparent ground, so that it suits light and dark pages."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=True, metadata={"Software": None})
    return buffer.getvalue()


#: matplotlib's colour map "Blues" at equal distances, from 0 to 1.
_BLUES = ((247, 251, 255), (222, 235, 247), (198, 219, 239), (158, 202, 225), (107, 174, 214), (66, 146, 198),
          (33, 113, 181), (8, 81, 156), (8, 48, 107))  # fmt: skip


def confusion_pixels(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> np.ndarray:
    """The confusion matrix in per cent of each true class, as pixels: (H, W, 3) uint8.

    It is drawn without matplotlib, which takes a third of a second for it. A run on features has a report each second.
    """
    from PIL import Image, ImageDraw

    counts = np.asarray(confusion, dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = int(np.clip(480 // len(classes), 4, 40))
    font, small = _font(14), _font(12)
    names = [_text(name, font) for name in classes] if len(classes) <= MOST_CLASSES else []
    upright = [name if name.width <= cell - 2 else name.transpose(Image.Transpose.ROTATE_90) for name in names]
    left, top, side = 8 + max((name.width for name in names), default=0) + 6, 28, cell * len(classes)
    told = _text("% of each true class (oracle, rows) by predicted class (columns)", font)
    width = max(left + side + 8, told.width + 16)
    picture = Image.new("RGB", (width, top + side + 6 + max((name.height for name in upright), default=0) + 8), "white")
    anchors = np.linspace(0, 100, len(_BLUES))
    colours = np.stack([np.interp(shares, anchors, channel) for channel in zip(*_BLUES, strict=True)], -1)
    cells = Image.fromarray(colours.round().astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    picture.paste(cells, (left, top))
    picture.paste(INK, (8, 5), told)
    for number, (name, below) in enumerate(zip(names, upright, strict=True)):
        middle = number * cell + cell // 2
        picture.paste(INK, (left - 6 - name.width, top + middle - name.height // 2), name)
        picture.paste(INK, (left + middle - below.width // 2, top + side + 6), below)
    if len(classes) <= MOST_ANNOTATED:
        draw = ImageDraw.Draw(picture)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                place = left + column * cell + cell // 2, top + row * cell + cell // 2
                draw.text(place, f"{share:.0f}", "white" if share > 55 else INK, small, anchor="mm")
    return np.asarray(picture)


def _font(size: int):
    """matplotlib's font, without an import of matplotlib."""
    from PIL import ImageFont

    folder = Path(find_spec("matplotlib").origin).parent
    return ImageFont.truetype(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _text(text: str, font):
    """A text as a mask of its own size."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (max(1, right), max(1, bottom)), 0)
    ImageDraw.Draw(mask).text((0, 0), text, 255, font)
    return mask.crop((left, top, max(left + 1, right), max(top + 1, bottom)))


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
    looks = ({"fill": True, "color": "#c3cad2", "alpha": 0.6, "linewidth": 0}, {"color": COLOURS[1], "linewidth": 1.8})
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


#: Colours of figures, and the variables of the page that stand for them in light and dark.
_VARIABLES = {
    INK: "--ink", "#22262c": "--ink", FAINT: "--line", "#8a9099": "--edge", "#9aa5b1": "--edge", "#c3cad2": "--edge",
    "#ffffff": "--paper", **{colour: f"--series-{number}" for number, colour in enumerate(COLOURS, 1)},
}  # fmt: skip


@styled
def to_svg(figure, name: str, description: str, themed: bool = True) -> str:
    """The figure as an `<svg>` element for HTML, without external references. Its ids begin with `name`.

    `themed`: with the page's variables in place of the colours of figures.
    """
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
    text = with_variables(text) if themed else text
    box = re.search(r'viewBox="[^"]*"', text)[0]
    title = escape(description)
    return re.sub(r"<svg[^>]*>", lambda _: f'<svg {box} role="img" aria-label="{title}">', text, count=1)


def with_variables(svg: str) -> str:
    """A figure with the page's variables in place of the colours of figures."""
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour.lower(), f"var({variable})")
    return svg


def has_own_colours(svg: str) -> bool:
    """Whether a figure has pixels, or colours that no variable of the page stands for."""
    return "<image" in svg or re.search(r"(?:fill|stroke|color)(?::\s*|=\")#", svg) is not None


def finish(axes, ylabel: str, legend: bool, xlabel: str = "round", columns: int = 3) -> None:
    """Add labels, whole numbers on the x axis, a grid, and a legend of some columns above."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    if legend:
        constrained = axes.figure.get_layout_engine() is not None
        place = {"loc": "outside upper left"} if constrained else {"loc": "upper left", "bbox_to_anchor": (0.1, 1.02)}
        axes.figure.legend(**place, ncols=columns, frameon=False, fontsize=10)
