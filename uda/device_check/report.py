"""The whole check: the machine, the parts in order within the time limit, a table and a JSON file."""

import os
import platform
import subprocess
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from uda.core.files import write_json
from uda.core.version import __version__
from uda.device_check.parts import PARTS, Finding, Outcome, Setup, run_part
from uda.training.device import processor
from uda.training.records import plain
from uda.training.run_folder import code_commit

#: Characters of a line, and the column in which figures start.
WIDTH, COLUMN = 80, 34
#: A part starts only if at least this share of its time limit is left.
FITS = 0.5


def machine(setup: Setup) -> dict[str, object]:
    """The card, its driver, versions, the processor and the commit."""
    card: dict[str, object] = {"device": setup.device, "card": None}
    if setup.cuda:
        properties = torch.cuda.get_device_properties(setup.device)
        card |= {
            "card": properties.name,
            "memory GiB": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {
        **card,
        "torch": torch.__version__,
        "uda": __version__,
        "commit": code_commit(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip().split("\n")[0] or None


def run_check(
    setup: Setup, names: Sequence[str], seconds: float, json_file: Path | None, say: Callable[[str], None] = print
) -> list[Outcome]:
    """Run parts, print each finding, and write the JSON file after each part.

    Args:
        setup: the device to check.
        names: the parts, in order.
        seconds: time limit of all parts. Parts without enough time are left out.
        json_file: file for the findings; None: no file.
        say: prints a line.
    """
    started, about, outcomes = time.monotonic(), machine(setup), []
    for key, value in about.items():
        if value is not None:
            say(f"{key:<11}{value}")
    if setup.tiny:
        say("a CPU: runs the code with tiny sizes; -: not measured")
    for name in names:
        limit = PARTS[name].seconds
        left = seconds - (time.monotonic() - started)
        say(f"\n{name}")
        if left < FITS * limit:
            outcome = Outcome(name, "left out: time")
        else:
            outcome = run_part(name, setup, min(limit, left), say=lambda finding: _say(finding, say))
        outcomes.append(outcome)
        for line in outcome.error.strip().splitlines()[-12:]:
            say(f"  {line[: WIDTH - 2]}")
        say(f"  {outcome.status}, {outcome.seconds:.0f} s")
        if json_file is not None:
            write_json(json_file, plain(to_json(about, outcomes, time.monotonic() - started)))
    failed = [outcome.part for outcome in outcomes if outcome.failed]
    say(f"\n{time.monotonic() - started:.0f} s; " + (f"failed: {', '.join(failed)}" if failed else "nothing failed"))
    return outcomes


def to_json(about: dict[str, object], outcomes: Sequence[Outcome], seconds: float) -> dict[str, object]:
    """The content of the JSON file. A figure that is null was not measured on this device."""
    parts = {outcome.part: {**asdict(outcome), "failed": outcome.failed} for outcome in outcomes}
    return {"machine": about, "seconds": round(seconds, 1), "parts": parts}


def _say(finding: Finding, say: Callable[[str], None]) -> None:
    for line in table_lines(finding):
        say(line)


def table_lines(finding: Finding) -> list[str]:
    """A finding in lines of at most 80 characters."""
    figures = ", ".join(f"{name} {_readable(value)}" for name, value in finding.figures.items())
    what = f"  {finding.what:<{COLUMN - 4}}  "
    lines = textwrap.wrap(figures, WIDTH, initial_indent=COLUMN * " ", subsequent_indent=COLUMN * " ")
    if len(what) == COLUMN and lines:
        lines[0] = what + lines[0].lstrip()
    else:
        lines.insert(0, what.rstrip())
    if finding.flaw:
        lines += textwrap.wrap(f"WRONG: {finding.flaw}", WIDTH, initial_indent="    ", subsequent_indent="    ")
    return lines


def _readable(value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
