#!/usr/bin/env python3
"""Measure how well validators find good settings: searches from a poor recipe, and what each validator would choose.

All validators judge the same trials: those of one search per seed. No trial ends early, so all have a score at the end.
The gain of a choice is its oracle accuracy minus that of trial 0, the recipe as it is. Its share is taken of the gain
of the best trial by labels. A search that was begun goes on.

    python -m benchmarks.run_search                           # the digits task, three seeds, fifteen minutes on a core
    python -m benchmarks.run_search --into docs/search.md
    python -m benchmarks.run_search --name mine --cfg mine.yaml --space space.yaml --trials 30 source.optim.lr=0.001
"""

import argparse
import csv
import io
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from uda.cli.command_line import CommandParser, run_command
from uda.core.errors import UserError
from uda.core.files import write_text
from uda.report.markdown import insert_markdown, markdown_table
from uda.searches.results import Verdict, oracle_of, verdicts
from uda.searches.search import Search
from uda.searches.trials import trial_folder
from uda.training.device import set_up_process

#: The digits task in quick runs. The learning rates are too small, and a round selects next to nothing.
POOR = """\
# Digits: quick runs with a poor recipe.
_base_: digits_avh.yaml
data: {rendered_per_class: 300}
source: {steps: 60, optim: {lr: 0.005}}
self_training:
  rounds: 5
  steps: 20
  portion: {start: 0.02, step: 0.0, max: 0.02}
  optim: {lr: 0.002}
"""
#: Columns of the CSV before the scores of the validators.
COLUMNS = ("seed", "trial", "state", "values", "oracle")


def poor_config(folder: Path) -> Path:
    """Write the poor recipe as a config, so that a search may change its settings."""
    path = folder / "digits_poor.yaml"
    write_text(path, POOR)
    return path


def search(options: argparse.Namespace, seed: int) -> tuple[list[dict[str, object]], list[Verdict], list[float]]:
    """One search. Returns its trials as rows, the verdicts, and the accuracy of trial 0 and of the best by labels."""
    folder = options.runs / options.name / f"seed{seed}"
    cfg = options.cfg or poor_config(options.runs / options.name)
    own = Search(
        cfg, options.space, options.trials, options.validator, folder, [*options.overrides, f"seed={seed}"],
        pruning=False,
    )  # fmt: skip
    set_up_process(own.config.runtime)
    trials = own.run().trials
    oracle = {trial.number: oracle_of(trial_folder(folder, trial.number), own.kind) for trial in trials}
    rows = [
        {
            "seed": seed,
            "trial": trial.number,
            "state": trial.state,
            "values": json.dumps(trial.values, separators=(",", ":")),
            "oracle": oracle[trial.number],
            **trial.validators,
        }
        for trial in trials
    ]
    known = [oracle[trial.number] for trial in trials if trial.state == "finished" and oracle[trial.number] is not None]
    if not known:
        raise UserError(f"{folder}: no target labels, so validators cannot be compared")
    return rows, verdicts(trials, oracle), [oracle[0], max(known)]


def to_csv(rows: Sequence[dict[str, object]]) -> str:
    """The trials of all seeds as CSV."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [*COLUMNS, *(name for name in names if name not in COLUMNS)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
    return buffer.getvalue()


def to_markdown(found: Sequence[tuple[list[Verdict], list[float]]]) -> str:
    """A row per validator, the mean over the seeds, with the best first."""
    names = [verdict.validator for verdict in found[0][0]]
    rows = []
    for name in names:
        own = [verdict for verdicts_, _ in found for verdict in verdicts_ if verdict.validator == name]
        shares = [100 * verdict.share for verdict in own if verdict.share is not None]
        ranks = [verdict.rank for verdict in own if verdict.rank is not None]
        rows.append(
            (
                statistics.mean(verdict.accuracy for verdict in own),
                statistics.mean(shares) if shares else None,
                min(shares) if shares else None,
                statistics.mean(ranks) if ranks else None,
                name,
            )
        )
    rows.sort(key=lambda row: -row[0])
    lines = [
        [f"`{name}`", f"{100 * accuracy:.1f}", *("-" if share is None else f"{share:.0f}" for share in (mean, least)),
         "-" if rank is None else f"{rank:.2f}"]
        for accuracy, mean, least, rank, name in rows
    ]  # fmt: skip
    first, best = (statistics.mean(ends[place] for _, ends in found) for place in (0, 1))
    lines.append(["trial 0: the recipe as it is", f"{100 * first:.1f}", "0", "0", ""])
    lines.append(["by labels: a bound, not a choice", f"{100 * best:.1f}", "100", "100", ""])
    head = ["chosen by", "accuracy, % (oracle)", "share of the gain, %", "lowest of the seeds, %", "rank correlation"]
    return markdown_table(head, lines, "lrrrr")


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m benchmarks.run_search", description=__doc__)
    parser.add_argument("--name", default="digits", help="name of the measurement (default: digits)")
    parser.add_argument("--cfg", help="the recipe to start from (default: a poor one of the digits task)")
    parser.add_argument("--space", default="digits", help="the space (default: digits)")
    parser.add_argument("--trials", type=int, default=20, help="trials of a search (default: 20)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3)")
    parser.add_argument("--validator", help="the validator that guides the searches (default: that of the config)")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"), help="folder of the searches")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of search_NAME.csv")
    parser.add_argument("--into", metavar="FILE", type=Path, help="also write the table into this document's block")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    rows, found = [], []
    for seed in range(options.seeds):
        own, judged, ends = search(options, seed)
        rows += own
        found.append((judged, ends))
        write_text(options.results / f"search_{options.name}.csv", to_csv(rows))
    table = to_markdown(found)
    print(table, end="")
    if options.into:
        document = options.into.read_text(encoding="utf-8")
        write_text(options.into, insert_markdown(document, f"search_{options.name}", table))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
