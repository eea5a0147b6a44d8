"""Measure the speed of uda (in a checkout only)."""

import importlib
import sys
from collections.abc import Sequence
from functools import partial

from uda.cli.command_line import CommandParser
from uda.config_files import ROOT
from uda.errors import UserError

#: The benchmarks' program, which lies beside the package and does not belong to an installation.
PROGRAM = "tools.bench"


def add_to(parser: CommandParser) -> None:
    """All words are those of the benchmarks' own parser."""
    parser.pass_on = partial(_run, parser.prog)


def _run(program: str, words: Sequence[str]) -> int:
    if not (ROOT / PROGRAM.replace(".", "/")).with_suffix(".py").is_file():
        raise UserError(f"{program}: the benchmarks are not part of an installation; run it in a checkout of uda")
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return importlib.import_module(PROGRAM).main(words, program)
