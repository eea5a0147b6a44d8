"""A worker that understands the lines of `uda.cli.worker`, does small things, and imports no torch.

say TEXT       prints it, with the number of this process and its GPUs
exit CODE      ends the process
kill FOLDER    leaves a checkpoint in the folder if there are fewer than four, and is killed; with four it is finished
lost FOLDER    is killed, with a log in the folder that has grown
early          is killed
until FILE     waits for the file
hold FILE      holds it until some seconds after SIGTERM; another start of it ends at once, with 2 while it is held
wait           answers 143 after SIGTERM and 130 after SIGINT
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from uda.cli import worker


def carry_out(word: str, argument: str = "") -> int:
    if word == "say":
        print(argument, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    elif word == "exit":
        sys.exit(int(argument))
    elif word == "kill":
        folder = Path(argument, "checkpoints")
        folder.mkdir(parents=True, exist_ok=True)
        there = len(list(folder.iterdir()))
        print("start", there, flush=True)
        if there == 4:
            return 0
        (folder / f"state-{there:06}-x.pt").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif word in ("lost", "early"):
        print("start", flush=True)
        if argument:
            Path(argument).mkdir(exist_ok=True)
            with open(Path(argument, "log.txt"), "a") as file:
                file.write("run")
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "until":
        while not Path(argument).exists():
            time.sleep(0.01)
    elif word == "wait":
        return wait()
    elif word == "hold":
        file = Path(argument)
        if file.exists():
            return 2 if file.read_text() == "held" else 0
        file.write_text("held")
        code = wait()
        time.sleep(3)
        file.write_text("left")
        return code
    return 0


def wait() -> int:
    """Wait for a signal. Returns the exit code that belongs to it."""
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    print("ready", flush=True)
    while not asked:
        time.sleep(0.01)
    return 128 + asked[0]


def carry_out_in(words, output, again):
    """One command of a job of submitit, as `uda.cli.worker.carry_out`."""
    with worker._printing_to(output, again):
        try:
            return carry_out(*words[:-1])
        except SystemExit as leaving:
            return leaving.code


class Chunk(worker.Chunk):
    carry_out = staticmethod(carry_out_in)


def work() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        with open(request["output"], "a" if request["again"] else "w") as file:
            os.dup2(file.fileno(), 1)
        code = carry_out(*request["words"][:-1])  # without runtime.threads
        sys.stdout.flush()
        print(code, file=answers, flush=True)


if __name__ == "__main__":
    work()
