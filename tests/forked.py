"""Scripts as processes that are forked from one which has imported torch and uda: those imports take seconds."""

import atexit
import contextlib
import gc
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

from uda.core.resources import CHECKOUT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


class _Server:
    """The process that forks, started when it is first needed. It ends, with all that it forked, when this one does."""

    _process: subprocess.Popen | None = None

    @classmethod
    def ask(cls, **request: object) -> int | None:
        """What it answers to a request: a process's number or its exit code."""
        if cls._process is None:
            pipe = subprocess.PIPE
            command = [sys.executable, "-m", "tests.forked"]
            cls._process = subprocess.Popen(command, cwd=CHECKOUT, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True)
        cls._process.stdin.write(json.dumps(request) + "\n")
        cls._process.stdin.flush()
        return json.loads(cls._process.stdout.readline())


class Forked:
    """A script and its words as a process in a session of its own, with what tests need of `subprocess.Popen`.

    Args:
        command: the script's path and the words after it.
        output: path of a file for stdout and stderr together; without one `communicate` gives them apart.
        environment: variables beside those of this process.
    """

    def __init__(self, *command: object, output: str | Path | None = None, environment: dict[str, str] | None = None):
        self._folder = TemporaryDirectory()
        self._outputs = [Path(output or f"{self._folder.name}/{name}") for name in ("stdout", "stderr")]
        self.returncode: int | None = None
        self.pid = _Server.ask(
            command=[str(word) for word in command],
            files=[str(path) for path in self._outputs],
            environment={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            folder=os.getcwd(),
        )

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.returncode is None:
            self.returncode = _Server.ask(ended=self.pid)
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """The exit code, when it has ended."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """All of stdout and of stderr, when it has ended."""
        self.wait(timeout)
        stdout, stderr = (path.read_text() for path in self._outputs)
        return stdout, stderr


def forked_job(world: int, *command: object, timeout: float = 120) -> tuple[list[int], str]:
    """Exit codes and output of a job: the command once per rank, in the environment that torchrun gives each."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": store.host, "MASTER_PORT": store.port}
    job |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    with TemporaryDirectory() as folder:
        output, ranks = Path(folder, "output"), []
        for rank in range(world):
            environment = {key: str(value) for key, value in (job | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            ranks.append(Forked(*command, output=output, environment=environment))
        return [rank.wait(timeout) for rank in ranks], output.read_text()


def _serve() -> None:
    """Fork a process, or tell of one, for each line of stdin. Only a process that was forked returns."""
    running = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return _become(**request)
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, 9)
    os._exit(0)


def _become(command: Sequence[str], files: Sequence[str], environment: dict[str, str], folder: str) -> None:
    os.setsid()
    for descriptor, path in enumerate((os.devnull, *files)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = list(command)
    sys.path[0] = str(Path(command[0]).parent)


class _Leaving:
    """Ends a forked process after its last exit handler: Python takes a second to free what torch and uda hold."""

    code = 1

    @classmethod
    def leave(cls) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(cls.code)


if __name__ == "__main__":
    atexit.register(_Leaving.leave)
    import uda.adaptation.run  # noqa: F401

    gc.freeze()
    _serve()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        _Leaving.code = 0
    except SystemExit as ended:
        _Leaving.code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
