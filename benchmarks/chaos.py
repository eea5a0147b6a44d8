#!/usr/bin/env python3
"""Kill a run many times, and check that its results are the same bit for bit.

First the run is carried out without interruption. Then it is started again and killed (SIGKILL) at random moments:
half of them while a file of the run is written, and every sixth during the start. After --kills kills, the run may end.
If it ends earlier, it is compared and started again. The comparison includes `results.json` and every report (without
times), every `pseudo_labels.csv` and the final weights. With --nproc, the run is a torchrun job. Then a random process
of the job is killed, and the job must end within a minute.

    python -m benchmarks.chaos                                   # digits, 30 kills, about ten minutes on two cores
    python -m benchmarks.chaos --kills 3 --cfg pacs_avh.yaml self_training.rounds=2
    python -m benchmarks.chaos --nproc 2 --kills 5
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from uda.cli.command_line import CommandParser, run_command

ROOT = Path(__file__).resolve().parents[1]

#: Seconds within which a torchrun job must end after one of its processes was killed.
JOB_ENDS_WITHIN = 60


def command(options: argparse.Namespace, folder: Path) -> list[str]:
    """The command line of a start."""
    launcher = [sys.executable]
    if options.nproc > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.nproc}"]
    # Checkpoints as often as possible, because the run must make progress between two kills.
    settings = ["runtime.threads=1", "runtime.checkpoint_minutes=0", *options.overrides, f"output={folder}"]
    return [*launcher, str(ROOT / "tools" / "self_train.py"), "--cfg", options.cfg, *settings]


def start(options: argparse.Namespace, folder: Path, log: Path) -> subprocess.Popen:
    """Start or resume the run in its own session."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("a") as output:
        return subprocess.Popen(
            command(options, folder), env=environment, stdout=output, stderr=output, start_new_session=True
        )


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def victim(process: subprocess.Popen, options: argparse.Namespace, chance: random.Random) -> int | None:
    """The process to kill: the run's process, or a random process of the job."""
    if options.nproc == 1:
        return process.pid
    return chance.choice(children(process.pid) or [None])


def started_anew(folder: Path) -> int:
    """A time that changes with every start: environment.json is written when the run starts its work."""
    with suppress(OSError):
        return (folder / "environment.json").stat().st_mtime_ns
    return 0


def wait_for_work(process: subprocess.Popen, folder: Path, before: int) -> None:
    """Wait until the run starts its work, or ends."""
    while process.poll() is None and started_anew(folder) == before:
        time.sleep(0.02)


def wait_for_the_moment(process: subprocess.Popen, folder: Path, seconds: float, writing: bool) -> str | None:
    """Wait some seconds, and with `writing` until the run writes a file.

    Returns a description of the moment, or None if the run ended first.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            return None
        time.sleep(min(0.01, max(0.0, until - time.monotonic())))
    if not writing:
        return "between writes"
    while process.poll() is None:
        for path in (folder, folder / "checkpoints", *folder.glob("rounds/*")):
            with suppress(OSError):
                for entry in os.scandir(path):
                    if entry.name.endswith(".tmp"):
                        return f"while {path.name}/{entry.name.strip('.').rsplit('.', 2)[0]} was written"
    return None


def last_line(log: Path, word: str) -> str:
    """The last line of the log with a word in it."""
    return next((line for line in reversed(log.read_text().splitlines()) if word in line), "from the beginning")


def differences(whole: Path, killed: Path) -> list[str]:
    """The files in which two runs differ, without times."""
    names = ["results.json", "checkpoints/final.safetensors", "checkpoints/label_free.safetensors"]
    names += sorted(str(path.relative_to(whole)) for path in whole.glob("rounds/**/*") if path.is_file())
    found = []
    for name in names:
        if not (whole / name).is_file() and not (killed / name).is_file():
            continue
        try:
            contents = [(folder / name).read_bytes() for folder in (whole, killed)]
        except OSError as error:
            found.append(f"{name}: {error.strerror}")
            continue
        if name.endswith(".json"):
            contents = [without_times(json.loads(content)) for content in contents]
        if contents[0] != contents[1]:
            found.append(name)
    return found


def without_times(value: object) -> object:
    """A JSON value without the keys `seconds`."""
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key != "seconds"}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def finish(options: argparse.Namespace, folder: Path, log: Path) -> float:
    """Carry a run out, and return its seconds."""
    started = time.monotonic()
    process = start(options, folder, log)
    if process.wait() != 0:
        sys.exit(f"an uninterrupted run ended with code {process.returncode}:\n{log.read_text()[-2000:]}")
    return time.monotonic() - started


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison. Returns the exit code: 0 if both runs are equal, 1 if not."""
    parser = CommandParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--cfg", default="digits_avh.yaml", help="the config (default: digits_avh.yaml)")
    parser.add_argument("--kills", type=int, default=30, help="number of kills (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument("--life", type=float, help="longest time before a kill in seconds (default: 1/8 of the run)")
    parser.add_argument("--nproc", type=int, default=1, help="processes of the job, under torchrun (default: 1)")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="folder in which both runs are kept")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    work = options.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        return _chaos(options, work)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)


def _chaos(options: argparse.Namespace, work: Path) -> int:
    chance = random.Random(options.seed)
    whole, killed, log = work / "whole", work / "killed", work / "killed.log"
    seconds = finish(options, whole, work / "whole.log")
    life = options.life or seconds / 8
    print(f"undisturbed: {seconds:.0f} s; {options.kills} kills after up to {life:.0f} s each", flush=True)
    kills = slowest_end = 0
    while kills < options.kills:
        before = started_anew(killed)
        process = start(options, killed, log)
        if kills % 6 != 5:
            wait_for_work(process, killed, before)
        moment = wait_for_the_moment(process, killed, chance.uniform(0, life), writing=kills % 2 == 1)
        target = victim(process, options, chance) if moment else None
        if target is None:
            if process.wait() != 0:
                sys.exit(f"the run ended with code {process.returncode}:\n{log.read_text()[-2000:]}")
            if (killed / "results.json").is_file():
                if _compare(whole, killed, kills):
                    return 1
                print("started again", flush=True)
                shutil.rmtree(killed)
            continue
        with suppress(ProcessLookupError):
            os.kill(target, signal.SIGKILL)
        started = time.monotonic()
        try:
            process.wait(JOB_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            sys.exit(f"the job still ran {JOB_ENDS_WITHIN} s after process {target} had been killed")
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        slowest_end = max(slowest_end, time.monotonic() - started)
        kills += 1
        print(f"kill {kills:2d}: {moment}; {last_line(log, 'resuming')}", flush=True)
    finish(options, killed, log)
    if options.nproc > 1:
        print(f"the job ended at most {slowest_end:.1f} s after a kill")
    return 1 if _compare(whole, killed, kills) else 0


def _compare(whole: Path, killed: Path, kills: int) -> list[str]:
    unequal = differences(whole, killed)
    verdict = f"DIFFERENT: {', '.join(unequal)}" if unequal else "equal bit for bit"
    print(f"killed {kills} times: {verdict}", flush=True)
    return unequal


if __name__ == "__main__":
    sys.exit(run_command(main))
