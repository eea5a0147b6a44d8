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
    """A text that speaks of parameters in backquotes (`bins`), in other words for those that have one."""
    return re.sub(r"`([a-z_]+)`", lambda parameter: names.get(parameter[1], parameter[0]), text)


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Within it, or in a function that it decorates, mistakes have other names for parameters.

    Library code speaks of its parameters in backquotes. What a user can change is a flag of the command line or a
    setting of a config.

    Args:
        names: what stands for each parameter: `{"bins": "--bins"}` or `{"bins": "human.bins"}`.
    """
    try:
        yield
    except UserError as error:
        raise UserError(renamed(str(error), names)) from error
