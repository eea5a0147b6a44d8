#!/usr/bin/env python3
"""Measure how well validators find good settings: searches from a poor recipe, and what each validator would choose.

All validators judge the same trials: those of one search per seed. No trial ends early, so all have a score at the end.
The gain of a choice is its oracle accuracy minus that of trial 0, the recipe as it is. Its share is taken of the gain
of the best trial by labels. A search that was begun goes on.

    python -m benchmarks.run_search                           # the digits task, three seeds, fifteen minutes on a core
    python -m benchmarks.run_search --into docs/search.md
    python -m benchmarks.run_search --name pacs_bank data.features=banks/pacs_tf_efficientnet_lite0
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
from uda.searches.results import oracle_of, verdicts
from uda.searches.search import Search
from uda.searches.trials import Trial, trial_folder
from uda.training.device import set_up_process

#: Poor recipes by name. The learning rates are too small, and a round selects next to nothing.
POOR = {
    "digits": """\
# Digits: quick runs with a poor recipe.
_base_: digits_avh.yaml
data: {rendered_per_class: 300}
source: {steps: 60, optim: {lr: 0.005}}
self_training:
  rounds: 5
  steps: 20
  portion: {start: 0.02, step: 0.0, max: 0.02}
  optim: {lr: 0.002}
""",
    "pacs_bank": """\
# A bank of PACS features, art painting to cartoon: a poor recipe.
_base_: pacs_avh.yaml
data: {source: art_painting, target: cartoon}
source: {batch_size: 64, optim: {lr: 0.001}}
self_training:
  rounds: 5
  steps: 40
  batch: {source: 32, selected: 32}
  portion: {start: 0.02, step: 0.0, max: 0.02}
  optim: {lr: 0.0005}
""",
}
#: Columns of the CSV before the scores of the validators.
COLUMNS = ("seed", "trial", "state", "values", "oracle")


def poor_config(folder: Path, name: str) -> Path:
    """Write a poor recipe as a config, so that a search may change its settings."""
    if name not in POOR:
        raise UserError(f"--name {name}: give --cfg and --space too, or one of {', '.join(POOR)}")
    path = folder / f"{name}_poor.yaml"
    write_text(path, POOR[name])
    return path


def search(options: argparse.Namespace, seed: int) -> list[dict[str, object]]:
    """One search. Returns a row for each trial."""
    folder = options.runs / options.name / f"seed{seed}"
    cfg = options.cfg or poor_config(options.runs / options.name, options.name)
    settings = [*options.overrides, f"seed={seed}"]
    own = Search(cfg, options.space or options.name, options.trials, options.validator, folder, settings, pruning=False)
    set_up_process(own.config.runtime)
    return [
        {
            "seed": seed,
            "trial": trial.number,
            "state": trial.state,
            "values": json.dumps(trial.values, separators=(",", ":")),
            "oracle": oracle_of(trial_folder(folder, trial.number), own.kind),
            **trial.validators,
        }
        for trial in own.run().trials
    ]


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


def read_trials(text: str) -> list[tuple[list[Trial], dict[int, float | None]]]:
    """The trials in a CSV, one list per seed, each with its oracle accuracies."""
    found: dict[str, tuple[list[Trial], dict[int, float | None]]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        trials, oracle = found.setdefault(row["seed"], ([], {}))
        scores = {name: float(value) if value else None for name, value in row.items() if name not in COLUMNS}
        trials.append(Trial(int(row["trial"]), json.loads(row["values"]), row["state"], validators=scores))
        oracle[trials[-1].number] = float(row["oracle"]) if row["oracle"] else None
    return list(found.values())


def to_markdown(text: str) -> str:
    """A table from a CSV: a row per validator, the mean over the seeds, with the best first."""
    searches = read_trials(text)
    judged = [verdicts(*own) for own in searches]
    if not all(judged):
        raise UserError("a search has no target labels, so validators cannot be compared")
    rows = []
    for name in dict.fromkeys(verdict.validator for own in judged for verdict in own):
        own = [verdict for found in judged for verdict in found if verdict.validator == name]
        accuracy = statistics.mean(verdict.accuracy for verdict in own)
        shares = [100 * verdict.share for verdict in own if verdict.share is not None]
        ranks = [verdict.rank for verdict in own if verdict.rank is not None]
        lowest = f"{min(shares):.0f}" if shares else "-"
        cells = [f"`{name}`", f"{100 * accuracy:.1f}", *_mean(shares, 0), lowest, *_mean(ranks, 2)]
        rows.append((accuracy, cells))
    lines = [cells for _, cells in sorted(rows, reverse=True)]
    first = [100 * oracle[0] for _, oracle in searches if oracle[0] is not None]
    best = [100 * max(share for share in oracle.values() if share is not None) for _, oracle in searches]
    lines.append(["the recipe as it is", *_mean(first, 1), "0", "0", ""])
    lines.append(["labels: a bound, not a choice", *_mean(best, 1), "100", "100", ""])
    head = ["chosen by", "class mean, % (oracle)", "share of the gain, %", "its lowest, %", "rank correlation"]
    return markdown_table(head, lines, "lrrrr")


def _mean(values: Sequence[float], digits: int) -> list[str]:
    return [f"{statistics.mean(values):.{digits}f}" if values else "-"]


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m benchmarks.run_search", description=__doc__)
    parser.add_argument("--name", default="digits", help="name of the measurement (default: digits)")
    parser.add_argument("--cfg", help="the recipe to start from (default: a poor one, if the name has it)")
    parser.add_argument("--space", help="the space (default: the name)")
    parser.add_argument("--trials", type=int, default=20, help="trials of a search (default: 20)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3)")
    parser.add_argument("--validator", help="the validator that guides the searches (default: that of the config)")
    parser.add_argument("--runs", type=Path, default=Path("runs/search"), help="folder of the searches")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of search_NAME.csv")
    parser.add_argument("--into", metavar="FILE", type=Path, help="also write the table into this document's block")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    rows: list[dict[str, object]] = []
    for seed in range(options.seeds):
        rows += search(options, seed)
        write_text(options.results / f"search_{options.name}.csv", to_csv(rows))
    table = to_markdown(to_csv(rows))
    print(table, end="")
    if options.into:
        document = options.into.read_text(encoding="utf-8")
        write_text(options.into, insert_markdown(document, f"search_{options.name}", table))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
