#!/usr/bin/env python3
"""Run a table's missing runs and write its CSV and Markdown: `python tools/table.py digits --jobs 2`."""

import argparse
import sys
from pathlib import Path

from uda.errors import UserError
from uda.tables import jobs_of, load_table, run_jobs, write_table

EXAMPLES = """\
examples:
  python tools/table.py digits --jobs 2                     run what is missing, write results/digits.csv
  python tools/table.py digits --collect --into README.md   write the CSV from finished runs, and README's table
  python tools/table.py pacs --jobs 1 -- runtime.device=cpu"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("table", help="a table in configs/tables/, or a path")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1); the cores are shared out")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/tables"), help="where the runs lie (default runs/tables)"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="where the CSV goes (default results)")
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="also write the table into this document's marked block"
    )
    parser.add_argument("--collect", action="store_true", help="run nothing, write what is finished")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes for every run")
    options = parser.parse_intermixed_args()
    try:
        table = load_table(options.table)
        jobs = jobs_of(table, options.runs, options.overrides)
        if not options.collect:
            run_jobs(jobs, max(1, options.jobs), log=lambda line: print(line, flush=True))
        print(write_table(table, jobs, options.results, options.into), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on with what is missing", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
