"""Check this machine's GPU."""

import argparse
from pathlib import Path

from uda.cli.command_line import CommandParser

EXAMPLES = (
    ("write a file to send with a report", "--json check.json"),
    ("print the parts", "--list"),
    ("check some parts only", "--only methods --only resume"),
    ("another GPU, less time", "--device cuda:1 --minutes 4"),
    ("tiny sizes, without measurements", "--device cpu"),
)


def add_to(parser: CommandParser) -> None:
    """Add the command's arguments to its parser."""
    parser.explain(
        "Check this machine's GPU: all methods and precisions, rates, memory, resuming, several processes.\n\n"
        "It takes at most 8 minutes. It needs no data and downloads nothing. If a part fails, the others still run. "
        "If no time is left for a part, the part says so. The exit code is 1 if a part fails, and 2 for a mistake in "
        "the command.",
        EXAMPLES,
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default: auto)")
    parser.add_argument("--only", metavar="PART", action="append", help="check this part only; may be repeated")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts (default: 8)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the findings to this file too")
    parser.add_list(["parts"], _parts)
    parser.set_defaults(run=_run)


def _parts(kind: str) -> str:
    from uda.device_check import PARTS

    return "\n".join(f"{name:<11}{line}" for name, line in PARTS.describe())


def _run(options: argparse.Namespace) -> int:
    from uda.cli.main import main
    from uda.device_check import PARTS, Setup, run_check

    for name in options.only or ():
        PARTS[name]
    outcomes = run_check(
        Setup(_named(options.device), command=main),
        [name for name in PARTS if name in (options.only or PARTS)],
        60 * options.minutes,
        options.json,
        say=lambda line: print(line, flush=True),
    )
    return int(any(outcome.failed for outcome in outcomes))


def _named(device: str) -> str:
    """The device with its number: `cuda` is the first one."""
    from uda.core.devices import pick_device

    found = pick_device(device)
    return "cuda:0" if found.type == "cuda" and found.index is None else str(found)
