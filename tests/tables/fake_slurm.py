"""Slurm's commands as far as submitit and the tables call them. Jobs are processes of this machine.

`install(folder)` writes the commands into a folder for PATH. What they know of jobs is in files of that folder:
`<job>.state`, `<job>.pid`, and `sbatch.<job>`, the file that was submitted.
"""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scancel", "squeue", "scontrol")


def install(folder: Path) -> None:
    """Write a program for each command. It ends when this module's `main` has done what the command does."""
    for name in COMMANDS:
        path = folder / name
        call = f"runpy.run_path({__file__!r})['main'](pathlib.Path({str(folder)!r}), {name!r}, sys.argv[1:])"
        path.write_text(f"#!{sys.executable} -IS\nimport pathlib, runpy, sys\nsys.exit({call})\n")
        path.chmod(0o755)


def main(home: Path, name: str, words: list[str]) -> int:
    """Do what a command of this name and these words does."""
    return globals()[f"_{name}"](home, words)


def _sbatch(home: Path, words: list[str]) -> int:
    text = Path(words[0]).read_text()
    if "--partition=gone" in text:
        print("sbatch: error: invalid partition specified: gone", file=sys.stderr)
        return 1
    number = str(1 + len(list(home.glob("sbatch.*"))))
    (home / f"sbatch.{number}").write_text(text)
    array = re.search(r"--array=0-(\d+)%(\d+)", text)
    tasks = [f"{number}_{index}" for index in range(int(array[1]) + 1)] if array else [number]
    for task in tasks:
        (home / f"{task}.state").write_text("PENDING")
    if os.fork() == 0:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        _control(home, words[0], number, tasks, int(array[2]) if array else 1)
        os._exit(0)
    print(f"Submitted batch job {number}")
    return 0


def _control(home: Path, file: str, number: str, tasks: list[str], at_once: int) -> None:
    """Start the tasks of a job, so many at a time, and a task that was put back into the queue once more."""
    running: dict[str, subprocess.Popen] = {}
    while tasks or running:
        while tasks and len(running) < at_once:
            task = tasks.pop(0)
            if _state(home, task) == "CANCELLED":
                continue
            own = {"SLURM_JOB_ID": number, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
            if "_" in task:
                own |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task.partition("_")[2]}
            running[task] = subprocess.Popen(["bash", file], env={**os.environ, **own}, start_new_session=True)
            (home / f"{task}.pid").write_text(str(running[task].pid))
            (home / f"{task}.state").write_text("RUNNING")
        for task, process in list(running.items()):
            if process.poll() is not None:
                del running[task]
                if _state(home, task) == "REQUEUED":
                    tasks.append(task)
                elif _state(home, task) == "RUNNING":
                    (home / f"{task}.state").write_text("FAILED" if process.returncode else "COMPLETED")
        time.sleep(0.05)


def _state(home: Path, task: str) -> str:
    return (home / f"{task}.state").read_text()


def _tasks(home: Path, number: str) -> list[str]:
    """The task of this number, or all tasks of the array of this number."""
    names = [path.stem for path in home.glob("*.state")]
    return [name for name in names if name == number or name.partition("_")[0] == number]


def _srun(home: Path, words: list[str]) -> int:
    output = words[words.index("--output") + 1].replace("%t", "0")
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        output = output.replace("%A", array).replace("%a", os.environ["SLURM_ARRAY_TASK_ID"])
    output = output.replace("%j", os.environ["SLURM_JOB_ID"])
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    command = words[words.index("--output") + 2 :]
    os.execvp(command[0], command)


def _sacct(home: Path, words: list[str]) -> int:
    print("JobID|State|NodeList")
    for word, number in itertools.pairwise(words):
        if word == "-j":
            for task in _tasks(home, number):
                print(f"{task}|{_state(home, task)}|here")
    return 0


def _scancel(home: Path, words: list[str]) -> int:
    number = signal.SIGTERM
    if "--signal" in words:
        place = words.index("--signal")
        number = getattr(signal, f"SIG{words[place + 1].removeprefix('SIG')}")
        words = words[:place] + words[place + 2 :]
    for task in (task for word in words for task in _tasks(home, word)):
        if _state(home, task) in ("PENDING", "RUNNING", "NODE_FAIL"):
            if number == signal.SIGTERM:
                (home / f"{task}.state").write_text("CANCELLED")
            with suppress(FileNotFoundError, ProcessLookupError):
                os.killpg(int((home / f"{task}.pid").read_text()), number)
    return 0


def _squeue(home: Path, words: list[str]) -> int:
    for number in words[-1].split(","):
        for task in _tasks(home, number):
            with suppress(FileNotFoundError, ProcessLookupError):
                os.killpg(int((home / f"{task}.pid").read_text()), 0)
                print(task)
    return 0


def _scontrol(home: Path, words: list[str]) -> int:
    (home / f"{words[1]}.state").write_text("REQUEUED")
    return 0
