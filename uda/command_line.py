"""What all commands share: how flags are read, and what becomes of output that nobody can take."""

import argparse
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from uda.registry import nearest

#: The shell's code for a program whose output nobody reads any more: 128 + SIGPIPE.
OUTPUT_CLOSED = 141


class CommandParser(argparse.ArgumentParser):
    """An argument parser without abbreviations. Its `type=Path` flags know `~`, and unknown flags get a hint."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "allow_abbrev": False})
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))

    def add_list(self, kinds: Sequence[str]) -> None:
        """The flag `--list`, which `kind_to_list` reads."""
        self.add_argument(
            "--list", nargs="?", const="", metavar="WHAT", help=f"print what there is: {', '.join(kinds)}"
        )

    def kind_to_list(self, given: str, kinds: Sequence[str], listing: Callable[[str], str]) -> str:
        """What `--list` prints; alone it prints the kinds. Ends with 2 for a kind that there is not."""
        if given and given not in kinds:
            self.error(f"--list: unknown '{given}'{nearest(given, list(kinds))} (known: {', '.join(kinds)})")
        return listing(given) if given else "\n".join(kinds)

    def error(self, message: str):
        """Say what is wrong, and end with 2."""
        unknown = re.match(r"unrecognized arguments: (--?([^\s=]+)\S*)", message)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            settings = any(action.dest == "overrides" for action in self._actions)
            example = unknown[1].lstrip("-") if "=" in unknown[1] else f"{unknown[2]}=..."
            message += nearest(unknown[1], flags) or f"; a setting has no dashes: {example}" * settings
        super().error(message)


def say(message: str, closed: Callable[[], None] = lambda: None) -> None:
    """Print a line at once.

    When nobody reads the output any more, as after `| head -1`, this and all later output goes nowhere, and `closed` is
    called. When it cannot be written for another reason (a full disk, a terminal that is gone), it goes nowhere.
    """
    try:
        print(message, flush=True)
    except BrokenPipeError:
        _hush(sys.stdout)
        _hush(sys.stderr)
        closed()
    except OSError:
        _hush(sys.stdout)


def run_command(main: Callable[[], int]) -> int:
    """The exit code of a command's `main`, with an output that takes any text and may be closed at any time.

    Characters that the output's encoding does not have are escaped (`\\u8774`). When nobody reads the output any more
    the code is 141, and nothing else is said.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except BrokenPipeError:
        if not _unread():
            raise  # another pipe
        code = OUTPUT_CLOSED
    finally:
        flushed = [_flush(stream) for stream in (sys.stderr, sys.stdout)]
    return code if all(flushed) else OUTPUT_CLOSED


def _unread() -> bool:
    """Whether one of the outputs is a pipe that nobody reads."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    for stream in (sys.stderr, sys.stdout):
        with suppress(OSError, ValueError, AttributeError):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush(stream: TextIO | None) -> bool:
    """Bring out what is left, or let it go; False where nobody reads it."""
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        _hush(stream)
        return not isinstance(error, BrokenPipeError)
    return True


def _hush(stream: TextIO | None) -> None:
    with suppress(OSError, ValueError, AttributeError):  # no file, or closed, or none
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
