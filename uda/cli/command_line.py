"""What all commands share: the parser, the printing of errors, and output that is closed early."""

import argparse
import os
import re
import select
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from uda.core.errors import UserError, naming
from uda.core.interruption import Interrupted
from uda.core.registry import nearest

#: Columns of `--help`.
WIDTH = 80

#: The shell's code for a program whose output nobody reads any more: 128 + SIGPIPE.
OUTPUT_CLOSED = 141


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """At most 80 columns wide. Paragraphs are wrapped, except those with an indented line, such as examples."""

    def __init__(self, prog: str, **options):
        super().__init__(prog, **{**options, "width": min(WIDTH, shutil.get_terminal_size().columns)})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (
            paragraph if "\n " in f"\n{paragraph}" else textwrap.fill(" ".join(paragraph.split()), width)
            for paragraph in text.strip("\n").split("\n\n")
        )
        return "\n\n".join(paragraphs)


class CommandParser(argparse.ArgumentParser):
    """An argument parser without abbreviations. Its `type=Path` flags expand `~`, and unknown flags get a hint."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options, "allow_abbrev": False})
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))
        self.commands: dict[str, CommandParser] = {}
        self.pass_on: Callable[[Sequence[str]], int] | None = None
        """If set, this function takes all words instead of the parser, also `--help`."""
        self._kinds: tuple[str, ...] = ()
        self._listing: Callable[[str], str] | None = None

    def add_argument(self, *names, offers: Callable[[], Iterable[str]] | None = None, **options) -> argparse.Action:
        """Add an argument, as argparse does. `offers` gives the values that shell completion proposes."""
        action = super().add_argument(*names, **options)
        action.offers = offers
        return action

    def explain(self, description: str, examples: Sequence[tuple[str, str]] = (), more: str = "") -> None:
        """Set what `--help` prints before and after the arguments.

        Args:
            description: paragraphs.
            examples: pairs of what a command does and its words after the program's name. If the words begin with
                `torchrun`, `{script}` in them stands for the script that torchrun starts.
            more: paragraphs after the examples.
        """
        self.description = description
        lines = [line for what, words in examples for line in (f"  {what}:", *_typed(words, self.prog))]
        self.epilog = "\n\n".join(filter(None, ("\n".join(["examples:", *lines]) if lines else "", more)))

    def add_command(self, name: str, line: str) -> "CommandParser":
        """Add a command below this parser and return its parser. `--help` prints `line` beside its name."""
        if not self.commands:
            title = {"title": "commands", "metavar": "COMMAND", "dest": "command"}
            self._commands = self.add_subparsers(prog=self.prog, parser_class=CommandParser, **title)
            self.set_defaults(run=self._name_a_command)
        self.commands[name] = self._commands.add_parser(name, help=line.replace("%", "%%"))
        return self.commands[name]

    def _name_a_command(self, options: argparse.Namespace) -> NoReturn:
        self.error(f"name a command: {', '.join(self.commands)}; {self.prog} --help says what they do")

    def add_overrides(self, what: str) -> None:
        """Add the `key=value` words. `what` is their help text."""
        self.add_argument("overrides", nargs="*", metavar="key=value", help=what)

    def add_list(self, kinds: Sequence[str], listing: Callable[[str], str]) -> None:
        """Add the flag `--list`.

        With one kind, the flag prints its names. With several kinds, it prints the kinds, or the names of a given one.

        Args:
            kinds: what can be listed.
            listing: returns the text to print for a kind.
        """
        self._kinds, self._listing = tuple(kinds), listing
        if len(kinds) == 1:
            self.add_argument("--list", action="store_const", const=kinds[0], help=f"print the {kinds[0]} and stop")
        else:
            self.add_argument(
                "--list", nargs="?", const="", metavar="WHAT", offers=lambda: kinds, help=f"print: {', '.join(kinds)}"
            )

    def listing(self, kind: str) -> str:
        """The text that `--list` prints for a kind. An unknown kind exits with code 2."""
        if kind and kind not in self._kinds:
            self.error(f"--list: unknown '{kind}'{nearest(kind, list(self._kinds))} (known: {', '.join(self._kinds)})")
        return self._listing(kind) if kind else "\n".join(self._kinds)

    def carry_out(self, words: Sequence[str]) -> int:
        """Run the command that the words name, and return its exit code."""
        if self.commands and words and not words[0].startswith("-"):
            name, *rest = words
            if name not in self.commands:
                known = list(self.commands)
                self.error(f"unknown command '{name}'{nearest(name, known)} (known: {', '.join(known)})")
            return self.commands[name].carry_out(rest)
        if self.pass_on:
            return self.pass_on(words)
        if self.commands and words and words[0].partition("=")[0] not in self._option_string_actions:
            self.error(f"unrecognized arguments: {words[0]}; a command comes first ({', '.join(self.commands)})")
        # Settings may stand anywhere among the flags. argparse cannot do this for a parser with commands.
        options = self.parse_args(words) if self.commands else self.parse_intermixed_args(words)
        if getattr(options, "list", None) is not None:
            print(self.listing(options.list))
            return 0
        with naming(self.flags):
            return options.run(options) or 0

    @property
    def flags(self) -> dict[str, str]:
        """The flag of each option, by its name in library code."""
        return {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with code 2."""
        unknown = re.match(r"unrecognized arguments: (--?([^\s=]+)\S*)", message)
        settings = any(action.dest == "overrides" for action in self._actions)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            example = unknown[1].lstrip("-") if "=" in unknown[1] else f"{unknown[2]}=..."
            is_setting = settings and unknown[2] not in ("cfg", "list", "dry-run")
            message += nearest(unknown[1], flags) or f"; a setting has no dashes: {example}" * is_setting
        elif re.match(r"unrecognized arguments: \S+=", message) and not settings:
            message += f"; {self.prog} takes no key=value words"
        super().error(message)


def _typed(words: str, program: str) -> list[str]:
    """A command as the user types it, in indented lines of at most 80 columns."""
    script = f"-m {program}" if program.startswith("uda") else program.removeprefix("python ")
    typed = f"python {program}" if program.endswith(".py") or program.startswith("tools/") else program
    line = words.format(script=script) if words.startswith("torchrun") else f"{typed} {words}".rstrip()
    line = re.sub(r"(--?\S+) (?!-)", "\\1\0", line)  # a flag and its value stay in one line
    lines = textwrap.wrap(line, WIDTH - 6, break_long_words=False, break_on_hyphens=False, subsequent_indent="    ")
    return [f"    {line}" for line in " \\\n".join(lines).replace("\0", " ").split("\n")]


def tell_mistake(error: UserError, who: str = "") -> int:
    """Print a user's mistake with `error: ` before each line. Returns the exit code."""
    for line in str(error).split("\n"):
        print(f"{who}error: {line}", file=sys.stderr, flush=True)
    return 2


def tell_interrupted(interrupt: KeyboardInterrupt, left: str, silent: bool = False) -> tuple[int, str]:
    """Print what interrupted a command and what is `left` of it. Returns the exit code and the message."""
    known = isinstance(interrupt, Interrupted)
    message = f"interrupted by {interrupt if known else 'SIGINT'}: {left}"
    if not silent:
        print(f"\n{message}", file=sys.stderr, flush=True)
    return interrupt.exit_code if known else 130, message


def say(message: str, closed: Callable[[], None] = lambda: None) -> None:
    """Print a line without buffering.

    If the reader has closed the output, as `| head -1` does, this line and all later output are dropped, and `closed`
    is called. If the line cannot be written for another reason (a full disk, a closed terminal), all output to stdout
    is dropped.
    """
    try:
        print(message, flush=True)
    except BrokenPipeError:
        _hush(sys.stdout)
        _hush(sys.stderr)
        closed()
    except OSError:
        _hush(sys.stdout)


def say_at_once(message: str) -> None:
    """Print a command's first line. If its reader is gone already, the command ends as by SIGPIPE."""
    try:
        print(message, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        _hush(sys.stdout)


def run_command(main: Callable[[], int]) -> int:
    """Run a command's `main` and return its exit code.

    Characters that the output's encoding lacks are escaped (`\\u8774`). If the reader has closed the output, the code
    is 141 and no error is printed. A user's mistake is printed on stderr and its code is 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _answer(main)
    except BrokenPipeError:
        if not _unread():
            raise  # another pipe
        code = OUTPUT_CLOSED
    finally:
        flushed = [_flush(stream) for stream in (sys.stderr, sys.stdout)]
    return code if all(flushed) else OUTPUT_CLOSED


def _answer(main: Callable[[], int]) -> int:
    try:
        return main()
    except UserError as error:
        return tell_mistake(error)
    except KeyboardInterrupt as interrupt:
        return tell_interrupted(interrupt, "there is nothing to resume")[0]


def _unread() -> bool:
    """Whether stdout or stderr is a pipe that its reader has closed."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    for stream in (sys.stderr, sys.stdout):
        with suppress(OSError, ValueError, AttributeError):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush(stream: TextIO | None) -> bool:
    """Flush a stream, and drop what cannot be written. Returns False if the reader has closed it."""
    try:
        if stream is not None:
            stream.flush()
    except OSError as error:
        _hush(stream)
        return not isinstance(error, BrokenPipeError)
    return True


def _hush(stream: TextIO | None) -> None:
    with suppress(OSError, ValueError, AttributeError):  # the stream has no file, is closed, or is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
