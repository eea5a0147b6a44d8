"""Build the page of a run again and check its records, or compare several runs on one page."""

import argparse
import glob
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from uda.cli.command_line import CommandParser
from uda.core.errors import UserError

EXAMPLES = (
    ("build the page of a run again, finished or not", "runs/digits_avh/seed0"),
    ("compare two runs", "runs/digits_avh/seed0 runs/digits_cbst/seed0"),
    ("compare methods over seeds", "'runs/digits_*/seed*' --out methods.html"),
)
COMPARISON = Path("comparison.html")


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "With one run folder: build its report.html again from its records, and check them. With several: write one "
        "page that compares them. The images are not needed. What is missing, broken or contradictory is printed, and "
        "the page says it too.\n\n"
        "In a comparison, runs that differ only in the seed are one group. Differences are to the group of the first "
        "run.",
        EXAMPLES,
        "The exit code is 0 if nothing is wrong, 1 if something is, and 2 for a mistake in the command.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or a pattern in quotes")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"page of the comparison (default: {COMPARISON} in this folder)"
    )
    parser.set_defaults(run=partial(_run, parser))


def _run(parser: CommandParser, options: argparse.Namespace) -> int:
    from uda.run_pages import compare, rebuild

    folders = _folders(options.runs)
    if len(folders) > 1:
        page = options.out or COMPARISON
        records = compare(folders, page)
    elif options.out:
        parser.error(f"--out is for a comparison, which needs two runs; there is one: {folders[0]}")
    else:
        records, page = [rebuild(folders[0])], folders[0] / "report.html"
    for record in records:
        for problem in record.problems:
            print(f"{record.folder}: {problem}", file=sys.stderr)
    print(f"report: {page}")
    return 1 if any(record.problems for record in records) else 0


def _folders(words: Sequence[Path]) -> list[Path]:
    """The run folders that the words name. A pattern stands for the run folders that match it, seed2 before seed10."""
    folders = []
    for word in words:
        if word.exists() or not glob.has_magic(str(word)):
            folders.append(word)
            continue
        found = [Path(path) for path in glob.glob(str(word), recursive=True)]
        runs = [path for path in found if (path / "config.yaml").is_file()]
        if not runs:
            matches = f"; it matches {len(found)} other files and folders" if found else ""
            raise UserError(f"no run folder matches '{word}'{matches}")
        folders += sorted(runs, key=_natural)
    return folders


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", str(path))]
