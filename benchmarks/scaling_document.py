"""Blocks and figures of docs/scaling.md from the measured curves and the estimate, and the tables of docs/visda.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.estimate import CARDS, Assumptions, Cost, Job, Serial, estimate, job_of, updates_once, visda_config
from benchmarks.memory import BESIDES_GIB, memory_of
from benchmarks.scaling import ALL, NUM_CLASSES, WIDTH, Curve, Point
from benchmarks.world import World
from uda.adaptation.config import AdaptationConfig
from uda.core.errors import UserError
from uda.core.files import atomic_path, write_text
from uda.core.resources import CHECKOUT
from uda.data.cards import load_card
from uda.report.markdown import insert_markdown, markdown_table

#: Numbers of GPUs of the estimate, and numbers of images per GPU that it uses besides the recipe's batch.
GPUS, IMAGES_A_GPU = (1, 8, 64), (2, 32)

#: Blocks of a document, each between its two marks: the measured and the estimated blocks of docs/scaling.md, and the
#: estimated blocks of docs/visda.md. The estimates of docs/scaling.md use its measured blocks.
MEASURED = ("machine", "choice", "rank0", "checkpoint", "stream", "world")
ESTIMATED = ("estimate", "assumptions")
VISDA = ("gpus", "configs")
BLOCKS = (*MEASURED, *ESTIMATED)

#: Number of images in a predict batch on a GPU, as in uda/training/device.py.
PREDICT_BATCH = 256

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA3377", "#B8860B", "#56B4E9", "#2b2f36")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Smaller values are drawn at this value, because a logarithmic axis has no 0.
_LEAST_MIB = 0.1
_STYLE = {"font.family": ["DejaVu Sans", "sans-serif"], "font.size": 9, "axes.spines.top": False}


def blocks(
    curves: Mapping[str, Sequence[Curve]], worlds: Sequence[World], machine: Mapping[str, object], given: Assumptions
) -> dict[str, str]:
    """Markdown by the name of its block in the document.

    Args:
        curves: the result of `measure_curves`.
        worlds: the figures of jobs with 1, 2, ... processes.
        machine: the machine and the versions, for readers.
        given: the assumptions of the estimate.
    """
    return {
        "machine": ", ".join(f"{key} {value}" for key, value in machine.items()) + ".\n",
        "choice": "\n".join(curve_table([curve], inputs=curve.axis == "N") for curve in curves["choice"]),
        "rank0": curve_table(curves["rank0"]),
        "stream": curve_table(curves["stream"]),
        "checkpoint": curve_table(curves["checkpoint"], mib="file, MiB"),
        "world": world_tables(worlds),
        **estimated_blocks(given, curves["choice"][0], curves["rank0"][-1], curves["checkpoint"][0]),
    }


def estimated_blocks(given: Assumptions, choice: Curve, alone: Curve, checkpoint: Curve) -> dict[str, str]:
    """The estimated blocks, from assumptions and the measured seconds of choice, rank 0's work and checkpoints."""
    save = checkpoint.seconds_at(job_of(visda_config()).parameters)
    serial = Serial(choice=choice.seconds_at, alone=alone.seconds_at, save=save)
    return {"estimate": estimate_table(given, serial), "assumptions": assumptions_table(given)}


def measured_curves(document: str) -> tuple[Curve, Curve, Curve]:
    """Read the seconds of a round's choice, of rank 0's work and of checkpoints from a document's tables.

    Raises UserError if the document does not have these tables.
    """
    return tuple(
        _curve_of(document, block, axis, row)
        for block, axis, row in (
            ("choice", "N", "seconds"),
            ("rank0", "N", f"{ALL}, s"),
            ("checkpoint", "P", "seconds"),
        )
    )


def _curve_of(document: str, block: str, axis: str, row: str) -> Curve:
    table = document.partition(f"<!-- table scaling-{block} -->")[2].partition("<!-- end ")[0]
    cells = {}
    for line in table.split("\n"):
        label, *values = (cell.strip() for cell in line.strip("| ").split("|"))
        cells.setdefault(label, values[:-1])  # the last column is the growth
    if not cells.get(axis) or not cells.get(row):
        raise UserError(f"the document has no measured table 'scaling-{block}' yet; run the tool without --only")
    sizes, seconds = ([float(cell.replace(",", "")) for cell in cells[label]] for label in (axis, row))
    return Curve(row, axis, tuple(Point(int(size), second, None) for size, second in zip(sizes, seconds, strict=True)))


def visda_blocks() -> dict[str, str]:
    """The tables of hours on common cards and of the VisDA configs, by the same estimate."""
    return {"gpus": gpus_table(), "configs": configs_table(sorted(CHECKOUT.glob("configs/visda_*.yaml")))}


#: On one GPU, choice, reports and checkpoints take a small share. The dry run does not count them either.
_NOTHING = Serial(choice=lambda count: 0.0, alone=lambda count: 0.0, save=0.0)


def gpus_table() -> str:
    """Seconds and hours of the self-training recipe on one GPU of each kind."""
    job = job_of(visda_config())
    head = ["GPU", "training in", f"s per step of {job.batch} images", "images predicted per second"]
    head += ["training, h", "predicting, h", "all, h"]
    lines = []
    for card in CARDS:
        for precision in ("bf16",) if card.computes_bf16 else ("fp32", "fp16"):
            given = card.assumptions(precision)
            cost = estimate(job, 1, given, _NOTHING)
            hours = (f"{seconds / 3600:.1f}" for seconds in (cost.train, cost.predict, cost.total))
            predicted = _rounded(given.predict_images_per_second)
            lines.append([card.name, precision, f"{cost.train / job.steps:.3f}", predicted, *hours])
    return markdown_table(head, lines, "llrrrrr")


def configs_table(paths: Sequence[Path]) -> str:
    """Steps, images and memory of each config, and its hours on an RTX 3090 if a step is one backward pass."""
    given = Assumptions()
    head = ["config", "steps x images", "images predicted", "memory, bf16 or fp16", "memory, fp32", "hours, RTX 3090"]
    lines = []
    for path in paths:
        config = AdaptationConfig.load(path, ["model.weights=none"])
        job, card = job_of(config), load_card(config.data.dataset)
        most = max(images for _, images in job.training)
        memory = [
            BESIDES_GIB + max(vars(memory_of(config, card.num_classes, most, PREDICT_BATCH, precision)).values())
            for precision in ("bf16", "fp32")
        ]
        hours = f"{estimate(job, 1, given, _NOTHING).total / 3600:.1f}" if updates_once(config) else "see the dry run"
        training = " + ".join(f"{steps:,} x {images}" for steps, images in job.training)
        shown = (f"{gib:.0f} GiB" for gib in memory)
        lines.append([f"`{path.name}`", training, f"{job.predicted:,}", *shown, hours])
    return markdown_table(head, lines, "llrrrr")


def _rounded(value: float) -> str:
    """A number with two digits: 1,234 becomes 1,200."""
    digits = len(str(int(value))) - 2
    return f"{round(value, -digits):,.0f}"


def curve_table(curves: Sequence[Curve], mib: str = "peak, MiB", inputs: bool = False) -> str:
    """A table with one row of seconds per curve and one row of MiB of the last curve. The last column is the growth.

    inputs: adds a row for the size of the features and logits, with 12 classes and a width of 512.
    """
    axis, sizes = curves[0].axis, curves[0].sizes
    lines = []
    for curve in curves:
        label = "seconds" if len(curves) == 1 else f"{curve.name}, s"
        lines.append(_row(label, curve.values("seconds"), axis, curve.exponent("seconds")))
    lines.append(_row(mib, curves[-1].values("mib"), axis, curves[-1].exponent("mib")))
    if inputs:
        lines.append(_row("its inputs, MiB", [4 * size * (WIDTH + NUM_CLASSES) / 2**20 for size in sizes], axis, 1.0))
    head = [axis, *(f"{size:,}" for size in sizes), "grows as"]
    return markdown_table(head, lines, f"l{'r' * len(sizes)}l")


def world_tables(worlds: Sequence[World]) -> str:
    """The tables of training steps and predict passes by the number of processes, and of averaging gradients."""
    first = worlds[0]
    head = ["processes", "images per process and step", "ms per step", "steps against one"]
    head += ["predicted per second", "against one"]
    lines = [
        [
            str(world.processes),
            f"{world.batch / world.processes:g}",
            number(1000 * world.step_seconds),
            f"{first.step_seconds / world.step_seconds:.2f}",
            number(world.predicted_per_second),
            f"{world.predicted_per_second / first.predicted_per_second:.2f}",
        ]
        for world in worlds
    ]
    text = markdown_table(head, lines, "r" * len(head))
    several = [world for world in worlds if world.gradient_seconds]
    if several:
        head = ["parameters", "MiB of gradients", *(f"ms, {world.processes} processes" for world in several)]
        lines = []
        for count in several[0].gradient_seconds:
            times = (number(1000 * world.gradient_seconds[count]) for world in several)
            lines.append([f"{int(count):,}", number(4 * int(count) / 2**20), *times])
        text += f"\n{markdown_table(head, lines, 'r' * len(head))}"
    return text


def estimate_table(given: Assumptions, serial: Serial) -> str:
    """Hours of the VisDA-2017 recipe on 1, 8 and 64 GPUs with several batches, and their shares by kind of work."""
    recipe = job_of(visda_config())
    jobs: list[tuple[int, Job]] = []
    for gpus in GPUS:
        batches = {recipe.batch, *(gpus * images for images in IMAGES_A_GPU if gpus * images > recipe.batch)}
        jobs += [(gpus, job_of(visda_config(batch))) for batch in sorted(batches)]
    head = ["GPUs", "batch (per GPU)", "steps", "hours, estimated", "training", "gradients", "predict"]
    head += ["waiting for images", "choice, rank 0, checkpoints", "starting"]
    lines = []
    for gpus, job in jobs:
        cost = estimate(job, gpus, given, serial)
        batch = f"{job.batch:,} ({job.batch / gpus:g})"
        if cost is None:
            lines.append([str(gpus), batch, "", "not possible", *[""] * 6])
            continue
        recipe_or_not = "" if job.batch == recipe.batch else " *"
        hours = f"**{cost.total / 3600:.2f}**"
        lines.append([str(gpus), f"{batch}{recipe_or_not}", f"{job.steps:,}", hours, *_shares(cost)])
    return markdown_table(head, lines, "r" * len(head))


def assumptions_table(given: Assumptions) -> str:
    """The table of all assumptions with their values."""
    lines = [
        [" ".join(field.description.split()), f"{getattr(given, name):,g}"]
        for name, field in type(given).model_fields.items()
    ]
    return markdown_table(["assumed", "value"], lines, "lr")


def number(value: float) -> str:
    """A number with at least three digits: 0.0123, 1.23, 123, 12,345."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _row(label: str, values: Sequence[float], axis: str, exponent: float | None) -> list[str]:
    return [label, *map(number, values), growth(axis, exponent)]


def growth(axis: str, exponent: float | None) -> str:
    """`N^1.02`, or a dash if the exponent is not known. An exponent that rounds to 0 has no sign."""
    return "-" if exponent is None else f"{axis}^{round(exponent, 2) + 0.0:.2f}"


def _shares(cost: Cost) -> list[str]:
    parts = (cost.train, cost.gradients, cost.predict, cost.loading, cost.serial, cost.starts)
    return [f"{100 * part / cost.total:.0f} %" for part in parts]


def figures(curves: Mapping[str, Sequence[Curve]]) -> dict[str, list[tuple[str, str, Sequence[Curve]]]]:
    """Panels of each figure, by the end of its file name: title, label of the lower row, curves."""
    titles = {"N": "images N", "K": "classes K", "D": "width D of the features"}
    return {
        "choice": [(f"choice over {titles[curve.axis]}", "peak, MiB", [curve]) for curve in curves["choice"]],
        "rest": [
            ("rank 0 alone, over images N", "peak, MiB", curves["rank0"]),
            ("streamed thresholds over N", "peak, MiB", curves["stream"]),
            ("checkpoint over parameters P", "file, MiB", curves["checkpoint"]),
        ],
    }


def draw(panels: Sequence[tuple[str, str, Sequence[Curve]]], path: Path) -> None:
    """Write a PNG: one column per panel, seconds above, MiB below, all axes logarithmic."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        # Panels of several curves are wider, because the names of the curves are beside them.
        widths = [1.75 if len(curves) > 1 else 1.0 for _, _, curves in panels]
        figure = Figure(figsize=(3.3 * sum(widths), 5.2), layout="constrained")
        rows = figure.subplots(2, len(panels), squeeze=False, width_ratios=widths)
        for (title, mib, curves), upper, lower in zip(panels, *rows, strict=True):
            upper.set_title(title, fontsize=10, loc="left")
            _plot(upper, curves, "seconds", "seconds")
            _plot(lower, curves[-1:], "mib", mib)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def _plot(axes, curves: Sequence[Curve], field: str, ylabel: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for curve, colour, marker in zip(curves, _COLOURS, _MARKERS, strict=False):
        values = np.maximum(curve.values(field), _LEAST_MIB if field == "mib" else 0)
        axes.plot(curve.sizes, values, color=colour, marker=marker, markersize=4.5, linewidth=1.6)
    axes.set(xscale="log", yscale="log", xlabel=curves[0].axis, ylabel=ylabel)
    low, high = axes.get_ylim()
    if high < 30 * low:  # a wide axis, so that a nearly flat line looks flat
        middle = (low * high) ** 0.5
        low, high = axes.set_ylim(middle / 6, middle * 6)
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    if curves[0].axis == "D":
        axes.set_xticks(curves[0].sizes)
        axes.set_xticks([], minor=True)
    elif curves[0].sizes[-1] >= 1e4:
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["right"].set_visible(False)
    _name_lines(axes, curves, field)


def _thousands(value: float, _: int) -> str:
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:g} {letter}"
    return f"{value:g}"


def _name_lines(axes, curves: Sequence[Curve], field: str) -> None:
    """Write the growth of each line: of a single line inside its panel, of several at their ends without overlap."""
    exponents = [curve.exponent(field) for curve in curves]
    texts = ["" if a is None else f"${curve.axis}^{{{a:.2f}}}$" for curve, a in zip(curves, exponents, strict=True)]
    if len(curves) == 1:
        axes.text(0.05, 0.95, texts[0], transform=axes.transAxes, color=_COLOURS[0], fontsize=13, va="top")
        return
    low, high = np.log(axes.get_ylim())
    ends = [(np.log(curve.values(field)[-1]) - low) / (high - low) for curve in curves]
    gap, place, places = 0.09, -1.0, {}
    for line in np.argsort(ends):
        place = places[line] = max(place + gap, ends[line])
    over = max(0.0, place - 1)
    for line, (curve, text) in enumerate(zip(curves, texts, strict=True)):
        where = (1.02, places[line] - over)
        axes.annotate(f"{curve.name} {text}", where, xycoords="axes fraction", color=_COLOURS[line], va="center")


def check_document(path: Path, names: Sequence[str] = BLOCKS) -> None:
    """Raise UserError if a document does not exist or lacks a block."""
    if not path.is_file():
        raise UserError(f"{path}: no such document; docs/scaling.md has the blocks for the tables")
    insert_blocks(path.read_text(encoding="utf-8"), dict.fromkeys(names, ""))


def insert_blocks(document: str, found: Mapping[str, str]) -> str:
    """Insert blocks, by name, into a document. Raises UserError if the document lacks one of them."""
    for name, markdown in found.items():
        document = insert_markdown(document, f"scaling-{name}", markdown)
    return document


def write_document(
    path: Path,
    curves: Mapping[str, Sequence[Curve]],
    worlds: Sequence[World],
    machine: Mapping[str, object],
    given: Assumptions | None = None,
) -> None:
    """Write the blocks into a document, and its figures beside it. Raises UserError if the document lacks a block."""
    document = insert_blocks(path.read_text(encoding="utf-8"), blocks(curves, worlds, machine, given or Assumptions()))
    for name, panels in figures(curves).items():
        draw(panels, path.with_name(f"{path.stem}-{name}.png"))
    write_text(path, document)
