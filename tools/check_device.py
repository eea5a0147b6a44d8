"""Check this machine's GPU: all methods and precisions, rates, memory, resuming, several processes.

It takes at most 8 minutes. It needs no data and downloads nothing. A part that fails does not stop
the others. A part for which no time is left says so. The exit code is 1 when anything is wrong, and
2 for a mistake in the command.

    python tools/check_device.py --json check.json          # what to send with a report
    python tools/check_device.py --list                     # the parts
    python tools/check_device.py --only methods --only resume
    python tools/check_device.py --device cuda:1 --minutes 4
    python tools/check_device.py --device cpu               # tiny sizes, nothing is measured
"""

import argparse
import sys
from pathlib import Path

from uda.command_line import CommandParser, run_command
from uda.errors import UserError


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = CommandParser(
        prog="check_device.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default: auto)")
    parser.add_argument(
        "--only", metavar="PART", action="append", help="check this part only; may be given several times"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts (default: 8)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the findings to this file too")
    parser.add_argument("--list", action="store_true", help="print the parts, a line each, and end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Check. Returns the exit code: 0, 1 when anything is wrong, 2 for a mistake of the user's."""
    options = parse_arguments(arguments)
    from uda.device_check import PARTS, Setup, run_check

    if options.list:
        for name, line in PARTS.describe():
            print(f"{name:<11}{line}")
        return 0
    try:
        for name in options.only or ():
            PARTS[name]
        setup = Setup(_named(options.device))
        outcomes = run_check(
            setup,
            [name for name in PARTS if name in (options.only or PARTS)],
            60 * options.minutes,
            options.json,
            say=lambda line: print(line, flush=True),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(any(outcome.failed for outcome in outcomes))


def _named(device: str) -> str:
    """The device with its number: `cuda` is the first one."""
    from uda.device import pick_device

    found = pick_device(device)
    return "cuda:0" if found.type == "cuda" and found.index is None else str(found)


if __name__ == "__main__":
    sys.exit(run_command(main))
