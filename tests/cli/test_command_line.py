"""Output that nobody can take, flags, and what a command's parser makes of them."""

import io
import os
import sys
from pathlib import Path

import pytest

from tests.in_process import adapt, generalize, hardness
from uda.cli.command_line import OUTPUT_CLOSED, CommandParser, run_command, say
from uda.cli.commands.adapt import LISTS
from uda.cli.commands.generalize import LISTS as GENERALIZATION_LISTS
from uda.cli.main import tree


class Pipe(io.TextIOWrapper):
    """A pipe to write to, whose reader leaves before it sees a text."""

    def __init__(self, leaves_before: str = "", **options):
        self._reader, writer = os.pipe()
        super().__init__(os.fdopen(writer, "wb"), **options)
        self._leaves_before = leaves_before

    def write(self, text):
        if self._reader is not None and self._leaves_before in text:
            os.close(self._reader)
            self._reader = None
        return super().write(text)

    def read_all(self) -> bytes:
        self.flush()
        os.set_blocking(self._reader, False)
        return os.read(self._reader, 1 << 16)


@pytest.fixture
def pipes(monkeypatch):
    """Both outputs as pipes of the test's own."""

    def make(**options):
        monkeypatch.setattr(sys, "stdout", Pipe(**options))
        monkeypatch.setattr(sys, "stderr", Pipe("(nothing)", encoding="utf-8"))
        return sys.stdout, sys.stderr

    return make


def test_a_training_that_nobody_reads_saves_and_ends_quietly(tiny, in_folder, pipes):
    """As by an interruption, but without a word on stderr, and with a SIGPIPE's code. The same command resumes."""
    _, errors = pipes(leaves_before="% by class", encoding="utf-8")
    assert adapt(["--cfg", str(tiny)]) == OUTPUT_CLOSED
    log = (in_folder / "runs/tiny/seed0/log.txt").read_text()
    assert (
        log.splitlines()[-1].endswith("the same command resumes from there") and "interrupted by SIGPIPE: saved" in log
    )
    assert errors.read_all() == b""
    pipes(leaves_before="(nothing)", encoding="utf-8")
    assert adapt(["--cfg", str(tiny)]) == 0
    assert "resuming" in (in_folder / "runs/tiny/seed0/log.txt").read_text()


@pytest.mark.parametrize(
    "command",
    [
        lambda: adapt(["--list", "methods"]),
        lambda: adapt(["--cfg", "digits_avh", "sede=1"]),
        lambda: generalize(["--list"]),
        lambda: hardness(["score", "--model", "nothing", "--data", "nowhere"]),
        lambda: print("a" * 10**6),
    ],
)
def test_a_short_command_that_nobody_reads_ends_quietly(command, in_folder, monkeypatch):
    """`2>&1 | true`: both outputs are one pipe."""
    pipe = Pipe(encoding="utf-8", line_buffering=True)
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setattr(sys, "stderr", pipe)
    assert run_command(command) == OUTPUT_CLOSED


def test_another_broken_pipe_is_not_the_output_s(pipes):
    pipes(leaves_before="(nothing)")

    def worker_is_gone():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_command(worker_is_gone)


def test_lines_that_cannot_be_written_do_no_harm(monkeypatch):
    """A full disk under `> log`, or a terminal that is gone: the run continues, and its log.txt has all lines."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        for _ in range(2):
            say("line", closed=lambda: pytest.fail("nobody left"))
        monkeypatch.undo()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_the_output_has_not_are_escaped(encoding, pipes):
    """A class name in Chinese, and a file name that is not UTF-8."""
    out, _ = pipes(leaves_before="(nothing)", encoding=encoding, errors="strict")
    assert run_command(lambda: print("蝴蝶 \udcff") or 0) == 0
    assert out.read_all() == rb"\u8774\u8776 \udcff" + b"\n"


@pytest.mark.parametrize(
    ("main", "arguments", "lines"),
    [
        (adapt, ["--list"], LISTS),
        (adapt, ["--list", "--cfg", "x"], LISTS),
        (generalize, ["--list"], GENERALIZATION_LISTS),
    ],
)
def test_list_alone_prints_the_kinds(main, arguments, lines, capsys):
    assert main(arguments) == 0
    assert capsys.readouterr().out.split() == list(lines)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (adapt, ["--list", "selector"], "--list: unknown 'selector', did you mean 'selectors'? (known: configs,"),
        (generalize, ["--list", "selectors"], "--list: unknown 'selectors' (known: configs, methods"),
        (adapt, ["--cfg", "x", "--dryrun"], "unrecognized arguments: --dryrun, did you mean '--dry-run'?"),
        (adapt, ["--cfg", "x", "--seed=1"], "unrecognized arguments: --seed=1; a setting has no dashes: seed=1"),
        (adapt, ["--data.source", "a"], "--data.source; a setting has no dashes: data.source=..."),
        (hardness, ["toy", "--epoch", "1"], "unrecognized arguments: --epoch, did you mean '--epochs'?"),
        (hardness, ["toy", "--runtime.device=cpu"], "a setting has no dashes: runtime.device=cpu"),
    ],
)
def test_unknown_flags_and_kinds_get_the_nearest(main, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_paths_of_flags_know_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = CommandParser()
    parser.add_argument("--out", type=Path)
    assert parser.parse_args(["--out", "~/x"]).out == Path("/home/me/x")
    assert parser.parse_args(["--out", "./~"]).out == Path("~")
    score = tree().commands["hardness"].commands["score"]
    options = score.parse_args(["--model", "~/m", "--data", "~/d", "--out", "~/o.csv", "--weights", "~/w"])
    assert [options.model, options.data, options.weights, str(options.out)] == [
        f"/home/me/{end}" for end in ("m", "d", "w", "o.csv")
    ]
