"""Measure the speed of uda (in a checkout only)."""

import importlib
import sys
from collections.abc import Sequence
from functools import partial

from uda.cli.command_line import CommandParser
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT

#: The program of the benchmarks. It is in a checkout only, beside the package.
PROGRAM = "benchmarks.run_bench"


def add_to(parser: CommandParser) -> None:
    """Pass all words to the parser of the benchmarks."""
    parser.pass_on = partial(_run, parser.prog)


def _run(program: str, words: Sequence[str]) -> int:
    if CHECKOUT is None:
        raise UserError(f"{program}: the benchmarks are not part of an installation; run it in a checkout of uda")
    if str(CHECKOUT) not in sys.path:
        sys.path.append(str(CHECKOUT))
    return importlib.import_module(PROGRAM).main(words, program)
