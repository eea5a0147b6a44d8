"""What the check is made of: parts that give findings, each in a process of its own and with its own time."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch

from uda.core.devices import synchronise
from uda.core.registry import Registry

#: A figure of a finding; None: not measured on this device.
Figure = float | str | None

_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(frozen=True)
class Setup:
    """What is checked."""

    device: str
    """A torch device. On a CPU all sizes are tiny: the check walks through its code and measures nothing."""

    @property
    def tiny(self) -> bool:
        """Whether this is a walk through the code."""
        return self.device == "cpu"

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU of CUDA (or ROCm)."""
        return self.device.startswith("cuda")

    def synchronise(self) -> None:
        """Wait until the device has done its work."""
        synchronise(torch.device(self.device))


@dataclass(frozen=True)
class Finding:
    """What one piece of a part has shown."""

    what: str
    figures: Mapping[str, Figure]
    flaw: str = ""
    """What is wrong; empty: nothing."""


@dataclass
class Outcome:
    """What became of a part."""

    part: str
    status: str
    """`ok`, `failed`, `left out: time` or `cut short: time`."""
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    error: str = ""
    """The traceback of a part that failed as a whole."""

    @property
    def failed(self) -> bool:
        """Whether anything in it is wrong. A part that was cut short must have found something."""
        cut_to_nothing = self.status == "cut short: time" and not self.findings
        return self.status == "failed" or cut_to_nothing or any(finding.flaw for finding in self.findings)


Check = Callable[[Setup], Iterator[Finding]]

PARTS: Registry[Check] = Registry("part")


def part(name: str, seconds: float) -> Callable[[Check], Check]:
    """Register a part, and how many seconds it may take on a GPU."""

    def register(check: Check) -> Check:
        check.seconds = seconds
        return PARTS.register(name)(check)

    return register


def run_part(name: str, setup: Setup, seconds: float, say: Callable[[Finding], None] = lambda finding: None) -> Outcome:
    """Run a part in a new process, for so many seconds at most.

    An error on a GPU can spoil its whole process, and a hang cannot be interrupted: the other parts are safe from both.

    Args:
        name: the part.
        setup: what it checks.
        seconds: when the process is killed; what it takes to start one does not count.
        say: called with each finding as it comes.
    """
    context = multiprocessing.get_context(_START)
    if _START == "forkserver":
        context.set_forkserver_preload(["uda.device_check", "uda.adaptation.run", "uda.cli.main"])
    started, outcome = time.monotonic(), Outcome(name, "ok")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(name, setup, theirs))
    process.start()
    theirs.close()  # so that its end is noticed here
    try:
        ours.recv()
        begun = time.monotonic()
        while True:
            if not ours.poll(max(0.0, begun + seconds - time.monotonic())):
                outcome.status = "cut short: time"
                break
            came = ours.recv()
            if not isinstance(came, Finding):
                outcome.error = came
                break
            outcome.findings.append(came)
            say(came)
    except EOFError:
        process.join()
        outcome.error = f"its process ended with code {process.exitcode}"
    finally:
        _end(process, grace=0.0 if outcome.status == "cut short: time" else 5.0)
    if outcome.error or any(finding.flaw for finding in outcome.findings):
        outcome.status = "failed"
    outcome.seconds = time.monotonic() - started
    return outcome


def _serve(name: str, setup: Setup, pipe: Connection) -> None:
    """The part's process: into the pipe goes a word that it has begun, its findings, then a traceback or ''."""
    if hasattr(os, "setsid"):
        os.setsid()  # whoever ends this process ends its loader workers too
    # Loaders here start their workers as they do in a user's own process.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    pipe.send("begun")
    try:
        for finding in PARTS[name](setup):
            pipe.send(finding)
        pipe.send("")
    except BaseException:
        pipe.send(traceback.format_exc())
    sys.stdout.flush()


def _end(process: multiprocessing.process.BaseProcess, grace: float) -> None:
    """Wait so many seconds, then kill the process and its children."""
    process.join(grace)
    if process.exitcode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (AttributeError, ProcessLookupError):  # Windows, or it has not come to leading a group
            process.kill()
        process.join()
