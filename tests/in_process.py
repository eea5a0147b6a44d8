"""Commands as calls within the test's process, and a table's runs likewise."""

import contextlib
import runpy
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from uda.cli.main import main
from uda.core.resources import CHECKOUT
from uda.tables.launchers import local
from uda.tables.launchers.local import Worker


def adapt(words: Sequence[str]) -> int:
    """The exit code of `uda adapt` with these words."""
    return main(["adapt", *words])


def generalize(words: Sequence[str]) -> int:
    """The exit code of `uda generalize` with these words."""
    return main(["generalize", *words])


def hardness(words: Sequence[str]) -> int:
    """The exit code of `uda hardness` with these words."""
    return main(["hardness", *words])


@contextlib.contextmanager
def command_in_process(subcommand: str, first: Callable[..., int] = Worker.run) -> Iterator[None]:
    """After the `first`, which is a process, runs of `uda <subcommand>` call it: each process would import torch."""
    commands = []

    def run(self, words, output, again=False, plugins=()):
        assert words[0] == subcommand
        if not commands:
            commands.append(words)
            return first(self, words, output)
        mode = "a" if again else "w"
        with open(output, mode) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            return main(words)

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CHECKOUT))
        patch.setattr(local, "cores", lambda: 1)
        patch.setattr(Worker, "run", run)
        yield
    torch.set_num_threads(threads)


def table_tool(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `tools/table.py` with these words."""
    monkeypatch.setattr("sys.argv", ["table.py", *words])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(CHECKOUT / "tools" / "table.py"), run_name="__main__")
    return stopped.value.code
