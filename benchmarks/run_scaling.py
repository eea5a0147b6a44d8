"""Measure how time and memory grow with images, classes, width, parameters and processes; and estimate costs on GPUs.

The tool measures the figures of docs/scaling.md on this machine. From these figures and stated assumptions, it
estimates the cost of VisDA-2017 with ResNet-101 on 1, 8 and 64 GPUs. It takes some minutes on two idle cores.

    python -m benchmarks.run_scaling                             # print the tables
    python -m benchmarks.run_scaling --into docs/scaling.md      # also write them and the figures
    python -m benchmarks.run_scaling --only estimate --into docs/scaling.md  # the estimate only, from its figures
    python -m benchmarks.run_scaling --only visda --into docs/visda.md  # estimated hours and memory on common GPUs
    python -m benchmarks.run_scaling --scale 0.01 --repeats 1    # a hundredth of the images, as a test
"""

import argparse
import os
import sys
from pathlib import Path

from benchmarks.estimate import Assumptions
from benchmarks.measure import count, machine, share
from benchmarks.scaling import measure_curves
from benchmarks.scaling_document import (
    ESTIMATED,
    VISDA,
    blocks,
    check_document,
    estimated_blocks,
    insert_blocks,
    measured_curves,
    visda_blocks,
    write_document,
)
from benchmarks.world import World, run_world
from uda.cli.command_line import CommandParser, run_command
from uda.core.files import write_text

#: Largest number of processes on one machine.
MOST_PROCESSES = 8


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = CommandParser(prog="python -m benchmarks.run_scaling", description=__doc__)
    parser.add_argument("--into", metavar="FILE", type=Path, help="write tables and figures into this document")
    parser.add_argument(
        "--only", choices=("estimate", "visda"), help="measure nothing; write these tables of the document `--into`"
    )
    parser.add_argument("--scale", type=share, default=1.0, help="share of the full numbers of images (default: 1)")
    parser.add_argument("--repeats", type=count, default=3, help="timed calls of each work (default: 3)")
    options = parser.parse_args(arguments)
    if options.only and not options.into:
        parser.error("--only needs the document: --into docs/scaling.md for estimate, docs/visda.md for visda")
    return options


def measure_worlds(scale: float, repeats: int) -> list[World]:
    """Measure jobs of 1, 2, 4... processes, up to the number of cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    worlds, processes = [], 1
    while processes <= min(cores, MOST_PROCESSES):
        print(f"torchrun: {processes} processes", flush=True)
        worlds.append(run_world(processes, scale, repeats))
        processes *= 2
    return worlds


def remake(what: str, path: Path) -> int:
    """Write the tables of estimates again. Returns the exit code."""
    check_document(path, ESTIMATED if what == "estimate" else VISDA)
    document = path.read_text(encoding="utf-8")
    found = visda_blocks() if what == "visda" else estimated_blocks(Assumptions(), *measured_curves(document))
    for name, markdown in found.items():
        print(f"\n{name}\n\n{markdown}", end="")
    write_text(path, insert_blocks(document, found))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write. Returns the exit code. Raises UserError."""
    options = parse_arguments(arguments)
    if options.only:
        return remake(options.only, options.into)
    if options.into:
        check_document(options.into)
    curves = measure_curves(options.scale, options.repeats, log=lambda line: print(line, flush=True))
    how = {**machine(), "medians of": options.repeats, "scale": f"{options.scale:g}"}
    measured = (curves, measure_worlds(options.scale, options.repeats), how)
    for name, markdown in blocks(*measured, Assumptions()).items():
        print(f"\n{name}\n\n{markdown}", end="")
    if options.into:
        write_document(options.into, *measured)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
