#!/usr/bin/env python3
"""Draw docs/images/angles.svg, the picture of AVH and AVC on the page of concepts: `python docs/drawing.py`."""

import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from uda.selection.angular import angles, avc, avh  # noqa: E402

CLASSES = ("car", "bus", "tree")
#: Directions of the class weights and of the feature, in degrees. All weights have the length 1.
WEIGHTS, FEATURE = (10.0, 80.0, 150.0), 35.0
#: Lengths of the features of two images with the same direction.
LENGTHS = (0.8, 2.4)
BLUE, ORANGE, GREY = "#0b6bb3", "#d95f02", "#5b6470"


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Features (2, 2) and class weights (3, 2)."""

    def at(degrees: float, length: float = 1.0) -> list[float]:
        return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]

    features = torch.tensor([at(FEATURE, length) for length in LENGTHS], dtype=torch.float64)
    return features, torch.tensor([at(degrees) for degrees in WEIGHTS], dtype=torch.float64)


def figures() -> dict[str, list[list[float]]]:
    """Angles in degrees, softmax and AVC of both images for each class, and AVH for the first class."""
    features, weight = vectors()
    first_class = torch.zeros(len(features), dtype=torch.int64)
    return {
        "angle": torch.rad2deg(angles(features, weight)).tolist(),
        "softmax": (features @ weight.T).softmax(1).tolist(),
        "avc": avc(features, weight).tolist(),
        "avh": avh(features, weight, first_class)[:, None].tolist(),
    }


def draw(path: Path) -> None:
    """Write the picture."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Arc

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    plane, bars = figure.subplots(1, 2, width_ratios=(1, 1.15))
    found = figures()

    plane.set(xlim=(-1.2, 2.3), ylim=(-0.2, 1.75), aspect="equal")
    plane.axis("off")
    plane.set_title("Features and class weights", loc="left", fontsize=11)
    for name, degrees in zip(CLASSES, WEIGHTS, strict=True):
        x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        plane.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.6})
        plane.text(1.12 * x, 1.12 * y, f"$w_{{{name}}}$", color=GREY, ha="center", va="center", fontsize=12)
    for length, label, color in reversed(list(zip(LENGTHS, ("a", "b"), (BLUE, ORANGE), strict=True))):
        x, y = length * math.cos(math.radians(FEATURE)), length * math.sin(math.radians(FEATURE))
        plane.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2})
        plane.text(x + 0.02, y + 0.06, f"image {label}", color=color, ha="center", va="bottom")
    for radius, degrees, angle in zip((0.6, 0.45, 0.3), WEIGHTS, found["angle"][0], strict=True):
        low, high = sorted((FEATURE, degrees))
        plane.add_patch(Arc((0, 0), 2 * radius, 2 * radius, theta1=low, theta2=high, color=GREY, lw=0.8))
        middle = math.radians((low + high) / 2 if degrees < 100 else 105)
        plane.text(
            (radius + 0.13) * math.cos(middle),
            (radius + 0.1) * math.sin(middle),
            f"{angle:.0f}°",
            fontsize=8,
            ha="center",
            va="center",
        )

    bars.set_title("What the two images get", loc="left", fontsize=11)
    width, places, ticks = 0.36, [], []
    for group, kind in enumerate(("softmax", "avc")):
        for number, name in enumerate(CLASSES):
            place = 3.6 * group + number
            places.append(place)
            ticks.append(name)
            for shift, (values, color) in enumerate(zip(found[kind], (BLUE, ORANGE), strict=True)):
                bar = bars.bar(place + (shift - 0.5) * width, values[number], width, color=color)
                bars.bar_label(bar, fmt="%.2f", fontsize=7.5, padding=1)
        bars.text(3.6 * group + 1, 0.72, "softmax" if kind == "softmax" else "AVC", ha="center", fontsize=10.5)
    bars.set(xticks=places, xticklabels=ticks, ylim=(0, 0.78), yticks=[])
    bars.spines[["top", "right", "left"]].set_visible(False)
    bars.tick_params(axis="x", length=0)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "uda"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(ROOT / "docs" / "images" / "angles.svg")
