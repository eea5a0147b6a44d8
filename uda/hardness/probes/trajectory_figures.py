"""The figures of an image's path from one class to another."""

from collections.abc import Mapping, Sequence

import numpy as np

from uda.hardness.probes.image_paths import Paths
from uda.report.figures import COLOURS, DASHES, INK, finish, new_axes, styled
from uda.report.findings import Findings, Row

#: For each quantity, the label of its axis and its title. Quantities of a class have one line per class.
CURVES = {
    "avh": ("AVH, in units of 1 / K", "AVH to both classes"),
    "angle": ("angle of x to w, radians", "Angle to both class weights"),
    "p": ("softmax", "Softmax of both classes"),
    "norm": ("|x|", "Norm of the feature"),
}
NICE = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@styled
def path_figure(
    rows: Sequence[Row],
    quantity: str,
    ends: tuple[str, str],
    flip: float | None,
    along: str = "step",
    xlabel="PGD step",
):
    """One quantity over the steps: one line per class, bands if the rows have intervals, a vertical line at the flip.

    Args:
        rows: the rows of `step_rows`, or of `aligned_rows` with along="from_flip".
        quantity: one of CURVES.
        ends: names of the source class and the target class.
        flip: position of the flip on the x axis.
        along: the rows' column for the x axis.
        xlabel: label of the x axis.
    """
    axes = new_axes(5, 3.1)
    lines = {quantity: None} if quantity in rows[0] else {f"{quantity}_from": ends[0], f"{quantity}_to": ends[1]}
    where = [row[along] for row in rows]
    for index, (key, name) in enumerate(lines.items()):
        label = None if name is None else f"{'from' if index == 0 else 'to'} {name}"
        axes.plot(
            where, [row[key] for row in rows], color=COLOURS[index], linestyle=DASHES[index], linewidth=1.8, label=label
        )
        if f"{key}_low" in rows[0]:
            low, high = ([row[f"{key}_{side}"] for row in rows] for side in ("low", "high"))
            axes.fill_between(where, low, high, color=COLOURS[index], alpha=0.2, linewidth=0)
    if flip is not None:
        axes.axvline(flip, color=INK, linewidth=1, linestyle=(0, (2, 2)), label="prediction flips")
    finish(axes, CURVES[quantity][0], legend=len(lines) > 1 or flip is not None, xlabel=xlabel)
    return axes.figure


def magnification(frames: np.ndarray) -> int:
    """The factor for differences between the last and the first frame: 99 % of them then fit into -0.5..0.5."""
    large = float(np.quantile(np.abs(frames[-1] - frames[0]), 0.99))
    return max((factor for factor in NICE if factor * large <= 0.5), default=1)


def shown_steps(total: int, flip: int | None) -> list[int]:
    """Steps to show: five over the whole path, the flip and the step before the flip."""
    steps = {round(step) for step in np.linspace(0, total, 5)}
    if flip is not None:
        steps |= {max(flip - 1, 0), flip}
    return sorted(steps)


@styled
def frames_figure(
    frames: np.ndarray, steps: Sequence[int], captions: Sequence[str], flipped: Sequence[bool], factor: int
):
    """The image at several steps, and below each its difference to the first image, magnified around grey.

    Args:
        frames: (F, S, S, C) in 0..1. Differences are to the first frame.
        steps: numbers of the steps, (F,).
        captions: one text per frame.
        flipped: whether the prediction is the target class, per frame.
        factor: magnification of the differences.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.4 + 1.6 * len(frames), 4.4), layout="constrained")
    grid = figure.subplots(2, len(frames), squeeze=False)
    changes = (0.5 + factor * (frames - frames[0])).clip(0, 1)
    for row, pictures in zip(grid, (frames, changes), strict=True):
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
    for axes, step, caption, over in zip(grid[0], steps, captions, flipped, strict=True):
        axes.set_title(f"step {step}", fontsize=10)
        axes.set_xlabel(caption, fontsize=9, color=COLOURS[1] if over else INK)
    grid[0, 0].set_ylabel("image")
    grid[1, 0].set_ylabel(f"change × {factor}")
    return figure


def add_trajectory(
    findings: Findings, paths: Paths, found: Mapping[str, Sequence[Row]], crossing: str, name: str
) -> None:
    """Add the section of a trajectory: curves, frames of the first image, tables."""
    ends = paths.classes[paths.source], paths.classes[paths.target]
    attack, count = paths.attack, len(paths.ids)
    flips = [row["flips"] for row in found["events"] if row["flips"] is not None]
    flip = float(np.median(flips)) if flips else None
    several = f"Mean of {count} images, with 95 % intervals. " if count > 1 else f"{paths.ids[0]}. "
    rule = "The vertical line marks the flip of the prediction" + " (median)." * (count > 1) + "." * (count == 1)
    findings.section(
        f"From {ends[0]} to {ends[1]}",
        f"Targeted PGD on {paths.model}: {attack.steps} steps of {attack.step_size:.3g} within {attack.eps:.3g} "
        f"({attack.norm}, pixels from 0 to 1). {crossing} AVHs cross where the angles cross, because they have the "
        "same denominator. Logits also depend on the lengths of the class weights and on the biases. All paths: "
        f"{name}_paths.csv.",
    )
    for quantity, (_, title) in CURVES.items():
        keys = [key for key in found["steps"][0] if key == "step" or key.split("_")[0] == quantity]
        findings.figure(
            f"{name}_{quantity}",
            path_figure(found["steps"], quantity, ends, flip),
            f"{title}, from {ends[0]} to {ends[1]}",
            several + (rule if flip is not None else "The prediction never becomes the target class."),
            [{key: row[key] for key in keys} for row in found["steps"]],
        )
    if count > 1 and flips:
        findings.figure(
            f"{name}_aligned",
            path_figure(found["aligned"], "avh", ends, 0, along="from_flip", xlabel="steps from the image's flip"),
            "AVH around the flip",
            "Mean over the images whose path has the step. Steps are counted from each image's flip.",
            found["aligned"],
        )
    _add_frames(findings, paths, found["events"][0]["flips"], name)
    findings.table(f"{name}_events", "Steps of events", found["events"], "- if an event does not happen.")
    shown = [key for key in found["steps"][0] if not key.endswith(("_low", "_high"))]
    findings.table(
        f"{name}_steps",
        "Step by step",
        [{key: row[key] for key in shown} for row in found["steps"]],
        "Means over the images. AVH is in units of 1 / K, angles are in radians. l2 and linf are the size of the "
        "change.",
    )


def _add_frames(findings: Findings, paths: Paths, flip: int | None, name: str) -> None:
    steps = shown_steps(paths.attack.steps, flip)
    factor = magnification(paths.frames)
    scale = len(paths.classes)
    rows = [
        {
            "image": paths.ids[0], "step": step, "predicted": paths.classes[paths.predicted[step, 0]],
            **{f"avh_{end}": scale * float(paths.values[f"avh_{end}"][step, 0]) for end in ("from", "to")},
            "l2": float(paths.values["l2"][step, 0]), "linf": float(paths.values["linf"][step, 0]),
        }
        for step in steps
    ]  # fmt: skip
    captions = [f"{row['predicted'][:14]}\nAVH {row['avh_from']:.2f}, {row['avh_to']:.2f}" for row in rows]
    flipped = [row["predicted"] == paths.classes[paths.target] for row in rows]
    findings.figure(
        f"{name}_frames",
        frames_figure(paths.frames[steps], steps, captions, flipped, factor),
        f"Frames of {paths.ids[0]}",
        f"Below each frame: the change since step 0, magnified {factor} times, around grey. AVH is to the source class "
        "and to the target class, in units of 1 / K.",
        rows,
        raster=True,
    )
