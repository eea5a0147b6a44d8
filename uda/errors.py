"""The errors that a user can mend."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a config, a path or the data that the user can mend.

    The command line prints its message as it stands, without a traceback, and ends with
    exit code 2. The message names the file, key or class concerned, and the cure.
    """


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A text that speaks of options (`--bins`), in other words for those that have one."""
    return re.sub(r"--[a-z][a-z-]*", lambda option: names.get(option[0], option[0]), text)


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Within it, or in a function that it decorates, mistakes name settings of a config in place of options.

    The parts of the study say what is wrong in the words of their own subcommands. Where a config calls them there are
    no such options, and the settings that stand for them are what its user can change.
    """
    try:
        yield
    except UserError as error:
        raise UserError(renamed(str(error), names)) from error
