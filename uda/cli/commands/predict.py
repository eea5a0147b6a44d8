"""Predict the classes of new images with a run's network."""

import argparse
import sys
import time
from collections import Counter
from contextlib import nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from uda.cli.command_line import CommandParser
from uda.cli.run_options import add_saved_run
from uda.core.errors import UserError
from uda.core.interruption import Interruption

if TYPE_CHECKING:
    from uda.core.distributed import Ranks
    from uda.data.images import Images
    from uda.trained_run import TrainedRun

EXAMPLES = (
    ("a folder of images, into predictions.csv", "runs/digits_avh/seed0 photos"),
    ("a list of images, as Parquet", "runs/digits_avh/seed0 photos.txt --out found.parquet"),
    ("CSV on stdout, for another program", "runs/digits_avh/seed0 photos --out -"),
    ("features of your own, of a run on such features", "runs/clip_avh/seed0 clip/photo.npz"),
    ("the model before adaptation", "runs/digits_avh/seed0 photos --weights source"),
    ("one process per GPU", "torchrun --nproc_per_node=8 {script} runs/visda_avh/seed0 photos"),
)

#: Classes that the last line names.
MOST_CLASSES = 5


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Predict the classes of new images with a run's network. The table has one row per image: path, prediction, "
        "probability (softmax), AVC and AVH of the predicted class, and the five best classes with their "
        "probabilities. Images are resized and normalised as in the run.",
        EXAMPLES,
        "Images are read and predicted batch by batch, so there may be any number of them. An image that cannot be "
        "read has a row with an error, and a warning at the end counts such rows. The exit code is then 0. If no image "
        "can be predicted, it is 2 and no file is written. Messages are on stderr.",
    )
    add_saved_run(parser)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="a folder (all images below it), a .txt list (a path per line; labels are ignored), or an image file; for "
        "a run on a feature bank also a file of such a bank",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="what the paths in lists are relative to (default: the list's folder)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions.csv"),
        help=".csv or .parquet, or - for CSV on stdout (default: predictions.csv)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the run's runtime.device)")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images per batch (default: the run's runtime.predict_batch_size)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from uda.core.distributed import start
    from uda.evaluation.prediction_table import check_table_name
    from uda.trained_run import load_run
    from uda.training.device import set_up_process

    if str(options.out) != "-":
        check_table_name(options.out)
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"`batch_size`: {options.batch_size} is below 1")
    with Interruption():
        run = load_run(options.run_folder, device=options.device, weights=options.weights)
        runtime = run.config.runtime
        runtime = runtime.model_copy(update={"device": options.device or runtime.device})
        with start(runtime.device) as ranks:
            set_up_process(runtime)
            ranks.in_order = False
            try:
                _predict(run, options, ranks)
            except UserError as error:
                if ranks.is_main:
                    raise
                time.sleep(2)  # in most cases rank 0 meets the same error, prints it and ends the job
                raise UserError(f"[process {ranks.rank}] {error}") from None
            ranks.in_order = True


def _predict(run: "TrainedRun", options: argparse.Namespace, ranks: "Ranks") -> None:
    from uda.data.given_images import named_images
    from uda.evaluation.prediction_table import prediction_writer

    log = _tell if ranks.is_main else None
    images = named_images(options.images, run.config.data.reading, options.root, log)
    ranks.check_same("the list of images", sha256("\n".join(images.ids).encode()).hexdigest())
    device = run.engine_for(images)[0].device
    if log:
        processes = f", {ranks.world} processes" * (ranks.world > 1)
        log(f"{_counted(images)}, {run.config.name} (weights {options.weights}), {device}{processes}")
    to_stdout = str(options.out) == "-"
    opened = prediction_writer(sys.stdout if to_stdout else options.out, len(run.classes))
    started, counts, failed, example = time.monotonic(), Counter(), 0, None
    with opened if ranks.is_main else nullcontext() as write:
        for rows in run.predict_rows(images, batch_size=options.batch_size, ranks=ranks, log=log):
            write(rows)
            counts.update(row[1] for row in rows if row[1] is not None)
            errors = [f"{row[0]}: {row[-1].removeprefix(f'{row[0]}: ')}" for row in rows if row[-1] is not None]
            failed, example = failed + len(errors), example or (errors[0] if errors else None)
        if ranks.is_main and failed == len(images):
            raise UserError(f"none of the {failed:,} images can be predicted; the first one: {example}")
    if not ranks.is_main:
        return
    seconds = time.monotonic() - started
    if failed:
        log(
            f"warning: {failed:,} of {len(images):,} images cannot be predicted; their rows have an error and no "
            f"prediction; the first one: {example}"
        )
    place = "" if to_stdout else f" in {options.out}"
    log(f"{_counted(images)}{place}, {len(images) / seconds:,.1f} images/s; {_shares(counts, run.classes)}")


def _counted(images: "Images") -> str:
    return f"{len(images):,} image{'s' * (len(images) != 1)}"


def _shares(counts: Counter, classes: tuple[str, ...]) -> str:
    """The most frequent predictions in %: `car 40.0 %, bus 12.5 % and 10 other classes 47.5 %`."""
    total = counts.total()
    order = sorted(classes, key=lambda name: -counts[name])  # stable, so of equal counts the first class is first
    named = [name for name in order[:MOST_CLASSES] if counts[name]]
    rest = [name for name in classes if counts[name] and name not in named]
    shown = ", ".join(f"{name} {100 * counts[name] / total:.1f} %" for name in named)
    if not rest:
        return shown
    others = f"{len(rest)} other class{'es' * (len(rest) > 1)}"
    return f"{shown} and {others} {100 * sum(counts[name] for name in rest) / total:.1f} %"


def _tell(line: str) -> None:
    with suppress(OSError):  # a reader that closed stderr is no reason to stop
        print(line, file=sys.stderr, flush=True)
