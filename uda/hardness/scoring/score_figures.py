"""The figures of a table of scores: histograms of right and wrong images, and the images with extreme scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from uda.data.images import Images
from uda.hardness.scoring.score_table import ScoreTable
from uda.hardness.scoring.scores import EASIER, SCORES
from uda.report.figures import COLOURS, FAINT, styled
from uda.report.findings import Findings

BINS = 40
SHOWN = 8
SIDE = 96
UNITS = {"angle": "radians", "entropy": "nats", "loss": "nats"}


def spread_rows(table: ScoreTable) -> list[dict[str, Any]]:
    """Histograms, one row per score, group (`right`, `wrong`) and bin, with the share of the group's images."""
    rows = []
    for name, values in table.scores.items():
        edges = np.histogram_bin_edges(values, BINS)
        for group, inside in (("right", table.right), ("wrong", ~table.right)):
            counts, _ = np.histogram(values[inside], edges)
            rows += [
                {"score": name, "group": group, "from": float(low), "to": float(high), "images": int(count),
                 "share": float(count / max(inside.sum(), 1))}
                for low, high, count in zip(edges, edges[1:], counts, strict=False)
            ]  # fmt: skip
    return rows


@styled
def spread_figure(rows: Sequence[dict[str, Any]]):
    """One panel per score: the correctly classified images as an area, the wrongly classified images as a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(row["score"] for row in rows))
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(0.6 + 2.6 * columns, 0.7 + 2.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    looks = {"right": {"fill": True, "color": "#c3cad2"}, "wrong": {"color": COLOURS[1], "linewidth": 1.8}}
    for axes, name in zip(panels, names, strict=False):
        for group, look in looks.items():
            own = [row for row in rows if row["score"] == name and row["group"] == group]
            if any(row["images"] for row in own):
                edges = [*(row["from"] for row in own), own[-1]["to"]]
                total = sum(row["images"] for row in own)
                label = f"{group}, {total:,} images"
                axes.stairs([100 * row["share"] for row in own], edges, label=label, **look)
        axes.set_xlabel(f"{name}, {UNITS[name]}" if name in UNITS else name, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color=FAINT, linewidth=0.8)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supylabel("% of these images", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize=10)
    return figure


def extremes(values: np.ndarray, count: int = SHOWN) -> tuple[np.ndarray, np.ndarray]:
    """The `count` images with the smallest values, ascending, and those with the largest values, descending."""
    order = np.argsort(values, kind="stable")
    return order[:count], order[::-1][:count]


@styled
def extremes_figure(table: ScoreTable, images: Images, name: str = "avh"):
    """Two rows of pictures: the images with the smallest and the largest scores, with class and score."""
    from matplotlib.figure import Figure
    from torchvision.transforms.v2 import functional

    rows = extremes(table.scores[name])
    count = len(rows[0])
    figure = Figure(figsize=(0.6 + 1.15 * count, 3.6), layout="constrained")
    panels = figure.subplots(2, count, squeeze=False)
    for line, title, numbers in zip(panels, (f"smallest {name}", f"largest {name}"), rows, strict=True):
        for axes, number in zip(line, numbers, strict=True):
            picture = functional.resize(images.read(int(number)), [SIDE, SIDE], antialias=True)
            picture = picture.expand(3, -1, -1) if len(picture) == 1 else picture
            axes.imshow(picture.permute(1, 2, 0).numpy())
            said = table.labels[number]
            if table.labels[number] != table.predicted[number]:
                said += f"\npredicted: {table.predicted[number]}"
            axes.set_title(f"{said}\n{table.scores[name][number]:.4g}", fontsize=7.5)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(title, fontsize=9)
    return figure


def add_scores(table: ScoreTable, images: Images, findings: Findings) -> None:
    """Put a table of scores on a page: means, histograms, and the images with the smallest and the largest AVH."""
    lines = dict(SCORES.describe())
    means = [
        {
            "score": name,
            "what it is": lines.get(name) or None,
            "hard images have": {1: "small scores", -1: "large scores"}.get(EASIER.get(name)),
            "mean": float(values.mean()),
            "deviation": float(values.std()),
            "smallest": float(values.min()),
            "largest": float(values.max()),
        }
        for name, values in table.scores.items()
    ]
    right = f"{100 * table.right.mean():.2f} %"
    findings.table("means", "Scores", means, f"{len(table):,} images; {right} of them are classified correctly.")
    rows = spread_rows(table)
    findings.figure(
        "spread",
        spread_figure(rows),
        "Spread of the scores",
        "Histograms of each score for correctly and for wrongly classified images.",
        rows,
    )
    name = "avh" if "avh" in table.scores else next(iter(table.scores))
    shown = [
        {"image": table.ids[i], "label": table.labels[i], "predicted": table.predicted[i], name: table.scores[name][i]}
        for part in extremes(table.scores[name])
        for i in part
    ]
    findings.figure(
        "extremes",
        extremes_figure(table, images, name),
        f"Smallest and largest {name}",
        f"The images with the smallest and the largest {name}: their class, the prediction if it is wrong, and the "
        "score.",
        shown,
        raster=True,
    )
