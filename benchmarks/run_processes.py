#!/usr/bin/env python3
"""Compare runs with one process and with several processes, for several seeds.

There are three runs per seed, with one thread per process: one process (`alone`), one process that divides its batch
into as many parts as the job has processes (`parts`: the same arithmetic except for rounding), and the job under
torchrun (`job`). The comparison includes label and choice of every image in round 0, and the class mean of the last
round. Finished runs are not run again.

    python -m benchmarks.run_processes                         # digits_avh, three seeds, ten minutes on two cores
    python -m benchmarks.run_processes --seeds 1 --cfg pacs_avh.yaml
    python -m benchmarks.run_processes --into docs/distributed.md
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from uda.cli.command_line import CommandParser, run_command
from uda.core.files import write_text
from uda.core.resources import CHECKOUT
from uda.report.markdown import insert_markdown, markdown_table


def run(options: argparse.Namespace, kind: str, seed: int) -> Path:
    """Carry out one of the three runs, and return its folder."""
    folder = options.runs / Path(options.cfg).stem / kind / f"seed{seed}"
    launcher = [sys.executable]
    settings = ["runtime.threads=1", f"seed={seed}", f"output={folder}", *options.overrides]
    if kind == "job":
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.nproc}"]
    if kind == "parts":
        settings.append(f"runtime.accumulate={options.nproc}")
    command = [*launcher, str(CHECKOUT / "tools" / "self_train.py"), "--cfg", options.cfg, *settings]
    ended = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-2000:]}")
    return folder


def choice(folder: Path) -> list[tuple[str, str, str]]:
    """Image, label and choice of every image in round 0."""
    with (folder / "rounds/00/pseudo_labels.csv").open(encoding="utf-8") as file:
        return [(row["image"], row["label"], row["selected"]) for row in csv.DictReader(file)]


def agreement(first: Path, second: Path) -> float:
    """Share of images with the same label and choice in round 0 of two runs."""
    pairs = list(zip(choice(first), choice(second), strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def final(folder: Path) -> float:
    """Class mean of the last round."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["final"]["class_mean"]


def to_markdown(rows: list[dict[str, float]], nproc: int) -> str:
    """The comparison as a Markdown table, with mean and standard deviation over the seeds."""
    head = ["seed", "one process", f"one, batch in {nproc} parts", f"{nproc} processes"]
    head += [f"round 0: one process and {nproc} agree", "in parts they agree"]
    lines = []
    for seed, row in enumerate(rows):
        finals = (f"{100 * row[kind]:.1f}" for kind in ("alone", "parts", "job"))
        shares = (f"{100 * row[pair]:.2f} %" for pair in ("alone_job", "parts_job"))
        lines.append([str(seed), *finals, *shares])
    if len(rows) > 1:
        spread = [
            f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
            for values in ([row[kind] for row in rows] for kind in ("alone", "parts", "job"))
        ]
        least = (f"{100 * min(row[pair] for row in rows):.2f} % at least" for pair in ("alone_job", "parts_job"))
        lines.append(["all", *spread, *least])
    return markdown_table(head, lines)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m benchmarks.run_processes", description=__doc__)
    parser.add_argument("--cfg", default="digits_avh.yaml", help="the config (default: digits_avh.yaml)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3)")
    parser.add_argument("--nproc", type=int, default=2, help="processes of the job (default: 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs/processes"), help="folder of the runs")
    parser.add_argument("--into", metavar="FILE", type=Path, help="also write the table into this document's block")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    rows = []
    for seed in range(options.seeds):
        folders = {kind: run(options, kind, seed) for kind in ("alone", "parts", "job")}
        row = {kind: final(folder) for kind, folder in folders.items()}
        agreements = {f"{kind}_job": agreement(folders[kind], folders["job"]) for kind in ("alone", "parts")}
        rows.append({**row, **agreements})
        print(f"seed {seed}: " + ", ".join(f"{name} {100 * value:.2f}" for name, value in rows[-1].items()), flush=True)
    table = to_markdown(rows, options.nproc)
    print(table, end="")
    if options.into:
        document = options.into.read_text(encoding="utf-8")
        write_text(options.into, insert_markdown(document, "processes", table))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
