"""The parts of the check. Each part yields findings, and runs in its own process with its own time limit."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch

from uda.core.devices import synchronise
from uda.core.registry import Registry

#: A figure of a finding. None: not measured on this device.
Figure = float | str | None

_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(frozen=True)
class Setup:
    """The device to check."""

    device: str
    """A torch device. On a CPU, all sizes are tiny: the check only runs its code and measures nothing."""
    command: Callable[[Sequence[str]], int] = field(kw_only=True)
    """Runs the `uda` command with some words and returns its exit code."""

    @property
    def tiny(self) -> bool:
        """Whether the check only runs its code, with tiny sizes."""
        return self.device == "cpu"

    @property
    def cuda(self) -> bool:
        """Whether the device is a CUDA (or ROCm) GPU."""
        return self.device.startswith("cuda")

    def synchronise(self) -> None:
        """Wait until the device has finished its work."""
        synchronise(torch.device(self.device))


@dataclass(frozen=True)
class Finding:
    """One result of a part."""

    what: str
    figures: Mapping[str, Figure]
    flaw: str = ""
    """What is wrong; empty if nothing is wrong."""


@dataclass
class Outcome:
    """How a part ended."""

    part: str
    status: str
    """`ok`, `failed`, `left out: time` or `cut short: time`."""
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    error: str = ""
    """The traceback if the part ended with an error."""

    @property
    def failed(self) -> bool:
        """Whether anything is wrong. A part that was cut short without findings has failed."""
        cut_to_nothing = self.status == "cut short: time" and not self.findings
        return self.status == "failed" or cut_to_nothing or any(finding.flaw for finding in self.findings)


Check = Callable[[Setup], Iterator[Finding]]

PARTS: Registry[Check] = Registry("part")


def part(name: str, seconds: float) -> Callable[[Check], Check]:
    """Register a part with its time limit in seconds on a GPU."""

    def register(check: Check) -> Check:
        check.seconds = seconds
        return PARTS.register(name)(check)

    return register


def run_part(name: str, setup: Setup, seconds: float, say: Callable[[Finding], None] = lambda finding: None) -> Outcome:
    """Run a part in a new process with a time limit.

    An error on a GPU can break its whole process, and a hang cannot be interrupted. Other parts are not affected.

    Args:
        name: the part.
        setup: the device to check.
        seconds: time after which the process is killed, without the time to start it.
        say: called with each finding.
    """
    context = multiprocessing.get_context(_START)
    if _START == "forkserver":
        context.set_forkserver_preload(["uda.device_check", "uda.adaptation.run"])
    started, outcome = time.monotonic(), Outcome(name, "ok")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(name, setup, theirs))
    process.start()
    theirs.close()  # so that this process gets EOFError when the other one ends
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
    """Run a part in its process. Sends `begun`, the findings, and then a traceback or '' through the pipe."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that `_end` also kills the loader workers
    # Loaders start their workers with the default method, as in a user's process.
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
    """Wait `grace` seconds, then kill the process and its children."""
    process.join(grace)
    if process.exitcode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (AttributeError, ProcessLookupError):  # Windows, or the process does not lead a group yet
            process.kill()
        process.join()
